#!/bin/bash
# Reads the output of go test -v and prints what an operator wants to read: one line per test as it ends, all that a
# test said when it failed or was skipped, and go test's own closing lines.
set -euo pipefail

declare -A said # output so far by top-level test
current=

root_of() { # the test's name without the names of subtests and what follows
    local name=${1%% *}
    REPLY=${name%%/*}
}

flush() {
    local test
    for test in "${!said[@]}"; do
        printf '%s' "${said[$test]}"
    done
    said=()
}

while IFS= read -r line || [[ -n $line ]]; do
    case $line in
        '=== RUN   '* | '=== CONT  '* | '=== NAME  '* | '=== PAUSE '*)
            root_of "${line:10}"
            current=$REPLY
            if [[ $line == '=== RUN'* && -n $current ]]; then
                said[$current]+=$line$'\n'
            fi
            ;;
        '--- PASS: '*)
            root_of "${line:10}"
            unset "said[$REPLY]"
            current=
            echo "$line"
            ;;
        '--- FAIL: '* | '--- SKIP: '*)
            root_of "${line:10}"
            printf '%s' "${said[$REPLY]:-}"
            unset "said[$REPLY]"
            current=
            echo "$line"
            ;;
        'panic: '* | 'fatal error: '* | 'WARNING: DATA RACE'* | FAIL* | 'exit status '*)
            # A test binary that dies says so without the --- FAIL of the tests that were running.
            flush
            current=
            echo "$line"
            ;;
        *)
            if [[ -n $current ]]; then
                said[$current]+=$line$'\n'
            else
                echo "$line"
            fi
            ;;
    esac
done
flush
