#!/bin/sh
# Seeds of the targets that take files: the recorded ones.
set -eu
cd "$(dirname "$0")"
files=../../../fixtures/quant/files
mkdir -p corpus/safetensors corpus/gguf
for file in "$files"/*.safetensors; do
    case $file in
    *.expected.safetensors) ;;
    *) cp "$file" corpus/safetensors/ ;;
    esac
done
cp "$files"/*.gguf corpus/gguf/
