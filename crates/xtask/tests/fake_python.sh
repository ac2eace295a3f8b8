#!/bin/sh
# Stands in for python3 in the tests, by a link: its "pip download" copies the wheel from the folder
# `shelf` beside the link and logs what it was asked for. With a file `no-pip` there, it has no pip; its torch is of the version
# that the file `torch-version` holds.
here=$(dirname "$0")
if [ -e "$here/no-pip" ]; then
    echo "No module named pip" >&2
    exit 1
fi
case "$*" in
-c*) exec cat "$here/torch-version" ;;
*--version) exit 0 ;;
esac
while [ "$1" != --dest ]; do shift; done
echo "$3" >>"$here/shelf/log"
cp "$here/shelf/${3%%==*}-${3##*==}"-*.whl "$2"
