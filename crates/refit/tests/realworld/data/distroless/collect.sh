# Copies a program and the libraries that it needs: collect.sh PROGRAM TO
set -e
for file in "$1" $(ldd "$1" | grep -o '/[^ ]*'); do
    mkdir -p "$2$(dirname "$file")"
    cp -L "$file" "$2$file"
done
