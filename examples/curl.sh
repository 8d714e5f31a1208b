#!/usr/bin/env bash
# Uses an isol8 server with curl alone: a run, a session, and the session's files.
set -euo pipefail
server=${ISOL8_HOST:-http://127.0.0.1:3000}
key="Authorization: Bearer $ISOL8_API_KEY"

execute() { # JSON
    curl --silent --show-error --fail-with-body "$server/execute" --header "$key" --data "$1"
    echo
}

# A run has a sandbox of its own, which keeps nothing.
execute '{"request": {"runtime": "python", "code": "print(6 * 7)"}}'

# The requests of a session share files and variables; each has code for the interpreter, or a shell command.
execute '{"sessionId": "curl", "request": {"runtime": "python", "code": "total = 40"}}'
execute '{"sessionId": "curl", "request": {"runtime": "python", "code": "total += 2; print(total)"}}'

# Files are raw bytes in both directions.
files=$server/session/curl/files/sandbox
printf 'b\na\n' | curl --silent --show-error --fail-with-body --header "$key" --upload-file - "$files/letters.txt"
echo
execute '{"sessionId": "curl", "request": {"runtime": "python", "cmd": "sort letters.txt > sorted.txt"}}'
curl --silent --show-error --fail-with-body --header "$key" "$files/sorted.txt"

# The end of the session removes its sandbox.
curl --silent --show-error --fail-with-body --header "$key" --request DELETE "$server/session/curl"
echo
