#!/bin/sh
# Fetches the files that VBench's scorers lack, from where the official code has them. Written by
# python -m eval.vbench weights. Run again, it fetches only what is still missing.
set -u
failed=0

say() { printf '%s\n' "$*" >&2; }

sum_of() {
    if command -v sha256sum >/dev/null 2>&1; then sha256sum <"$1"; else shasum -a 256 <"$1"; fi | cut -c 1-64
}

# is_right FILE EXACT_SIZE LEAST_SIZE SHA256; an empty size or checksum isn't known
is_right() {
    bytes=$(wc -c <"$1" | tr -d ' ')
    if [ -n "$2" ] && [ "$bytes" -ne "$2" ]; then say "wrong size: $1 has $bytes bytes, expected $2"; return 1; fi
    if [ "$bytes" -lt "$3" ]; then say "wrong size: $1 has $bytes bytes, expected $3 at least"; return 1; fi
    if [ -n "$4" ]; then
        sum=$(sum_of "$1")
        case $sum in "$4"*) ;; *) say "wrong checksum: $1 has sha256 $sum, expected $4"; return 1 ;; esac
    fi
}

# fetch URL FILE EXACT_SIZE LEAST_SIZE SHA256 [MEMBER of the zip that lies at URL]
fetch() {
    if [ -f "$2" ] && is_right "$2" "$3" "$4" "$5"; then say "there already: $2"; return 0; fi
    say "fetching $2"
    mkdir -p "$(dirname "$2")" || return 1
    if [ $# -eq 6 ]; then
        get "$1" "$2.zip.part" || return 1
        unzip -p "$2.zip.part" "$6" >"$2.part"
    else
        get "$1" "$2.part" || return 1
    fi && is_right "$2.part" "$3" "$4" "$5" && mv -f "$2.part" "$2"
    result=$?
    rm -f "$2.part" "$2.zip.part"
    return $result
}

# get URL FILE; goes on with what an earlier try, or one that was stopped, left of the file
get() {
    curl -L --fail --retry 3 -C - -o "$2" "$1" && return 0
    result=$?
    case $result in 33 | 36) ;; *) [ "$result" -ne 22 ] || rm -f "$2"; return $result ;; esac
    rm -f "$2"  # this server can't go on in the middle
    curl -L --fail --retry 3 -o "$2" "$1"
}

# needs TOOL...
needs() {
    for tool in "$@"; do
        command -v "$tool" >/dev/null 2>&1 || { say "error: needs $tool, which isn't there: install it first"; exit 1; }
    done
}

# clone URL FOLDER FILE_THAT_IT_HAS
clone() {
    if [ -f "$2/$3" ]; then say "there already: $2"; return 0; fi
    if [ -e "$2" ]; then say "$2 is there without $3: remove it first"; return 1; fi
    say "cloning $2"
    mkdir -p "$(dirname "$2")" && rm -rf "$2.part" && git clone --depth 1 "$1" "$2.part" &&
        [ -f "$2.part/$3" ] && mv "$2.part" "$2" && return 0
    rm -rf "$2.part"
    return 1
}

# FILES

if [ "$failed" -gt 0 ]; then say "error: $failed could not be fetched"; exit 1; fi
say "all there"
