# Waits inside bash's own start until the guest says what to run: its script, or cells one after the other.
#
# The guest starts `bash /sandbox/main.sh` with the control socket on descriptor 3, the mailbox on 4 and this
# file on 5, which `BASH_ENV` names: bash reads it before it opens the script. The mailbox holds strings with
# a NUL behind each.
#
# For a script these are its directory, and the names and values of its environment; bash goes on with it by its
# own means, and nothing of ours is left (but that `BASH_ARGC` counts our having been here: a zero).
#
# For cells it executes itself once more, as a shell whose script is the control socket: bash reads commands
# from descriptor 0, and the socket having two directions, answers go there too. For each cell the guest puts
# its fields into the mailbox (number, cwd, stdin, source, name, value, ...), and sends these lines:
#
#     \isol8_begin; { \isol8_status; } <&"$((LINENO=0))"
#     \builtin eval "$isol8_source" <"$isol8_stdin" 251>&- 252>&- 253>&-; { \isol8_end; } >/dev/null 2>&1
#     \isol8_end
#
# So a cell runs at the top level, where `declare` makes globals and `break` finds no loop of ours.
# Its lines count from 1, because the first of these sets the counter back (by an expansion that bash
# does not undo), and messages begin with its `$0`, `cell <number>`. While it runs, bash keeps our
# descriptors aside and closed for programs.
#
# Commands that end a cell from within (`exit`, `set -e`, `set -u`, `${x?}`, an interrupt) end the process. Only the
# trap on EXIT can hold that up, and only once: it writes the state of the shell into the mailbox and executes bash
# again, which takes the state up. The process stays, and with it its descriptors, directory, limits and children; but
# `wait` and `jobs` do not know older children.
#
# `trap` is a function, since the traps on EXIT and on most signals that end a script are ours: bash would run
# the trap on EXIT for such a signal too, and not say which it was. (Of SIGSEGV and its like it must be bash's
# own: a trap would return to what failed, for ever.) The user's trap on EXIT runs at the end of the cell that
# set it, as it would for a script; all others live on.
#
# `ulimit` is a function, because bash loses its own descriptors, the highest of which is 253, if its limit is below
# that.

if [[ $- != *s* ]]; then
    # An older one, in an image of the user's: scripts are started afresh, and cells refused.
    ((BASH_VERSINFO[0] >= 5)) || exit
    printf 'ready\n' >&3
    read -r -u 3 isol8_word || exit
    if [[ $isol8_word == cells ]]; then
        exec -a bash /proc/self/exe -s <&3 251<&4 252>&1 253>&2 3<&- 4<&-
    fi
    mapfile -d '' -t -u 4 isol8_fields
    if [[ $PWD != "${isol8_fields[0]}" ]]; then
        if ! cd -P -- "${isol8_fields[0]}" 2>/dev/null; then
            printf 'directory\n' >&3
            exit
        fi
        unset -v OLDPWD
        declare -x OLDPWD
    fi
    for ((isol8_i = 1; isol8_i + 1 < ${#isol8_fields[@]}; isol8_i += 2)); do
        isol8_word=${isol8_fields[isol8_i]}
        # Variables that every program gets were there from the start.
        [[ ${!isol8_word-} == "${isol8_fields[isol8_i + 1]}" && ${!isol8_word@a} == *x* ]] ||
            export "$isol8_word=${isol8_fields[isol8_i + 1]}"
    done
    printf 'started\n' >&3
    exec 3<&- 4<&- 5<&-
    unset -v BASH_ENV isol8_word isol8_fields isol8_i
    SECONDS=0
    # For `$_`, which is this in a shell that has executed nothing.
    : bash
    return
fi
exec 5<&-

isol8_begin() {
    builtin mapfile -d '' -t isol8_fields </proc/self/fd/251
    isol8_stdin=${isol8_fields[2]:-/dev/null} isol8_source=${isol8_fields[3]}
    isol8_cleanup='' isol8_signal='' isol8_from='' isol8_old=()
    if [[ ${isol8_fields[1]} ]]; then
        isol8_from=$PWD isol8_oldpwd=${OLDPWD-}
        if ! builtin cd -- "${isol8_fields[1]}" 2>/dev/null; then
            isol8_source='' isol8_stdin=/dev/null
            builtin printf 'cell %s directory\n' "${isol8_fields[0]}" >&0
            builtin return
        fi
        isol8_to=$PWD
    fi
    for ((isol8_i = 4; isol8_i + 1 < ${#isol8_fields[@]}; isol8_i += 2)); do
        isol8_name=${isol8_fields[isol8_i]}
        # Bash can have no such variable, or must not change it.
        [[ $isol8_name == [a-zA-Z_]*([a-zA-Z0-9_]) && ${!isol8_name@a} != *r* ]] || builtin continue
        isol8_old[isol8_i]=${!isol8_name+${!isol8_name@a}=${!isol8_name}}
        builtin export "$isol8_name=${isol8_fields[isol8_i + 1]}"
    done
    # Whatever the cell before has put in their place: it would silence this one.
    exec >&252 2>&253
    # The numbers that bash will move our descriptors to: it takes the lowest free ones from 10 on.
    isol8_aside=()
    for ((isol8_i = 10; ${#isol8_aside[@]} < 4; isol8_i += 1)); do
        [[ -e /proc/self/fd/$isol8_i ]] || isol8_aside+=("$isol8_i")
    done
    # At the end of a script that has no last line break, a backslash continues nothing, and is gone.
    [[ $isol8_source != *\\ ]] || isol8_source+=$'\n'
    isol8_number=${isol8_fields[0]}
    BASH_ARGV0="cell $isol8_number"
    # On the cell's first line, so that nothing of ours is traced or ended by what it set.
    isol8_source="\\isol8_begun; $isol8_options$isol8_source" isol8_settled=''
    builtin trap -- "${isol8_traps[INT]-isol8_interrupted 2}" INT
}

# Not before standard input is open: from then on its name is gone. The control socket is aside.
isol8_begun() {
    builtin printf 'begun %s\n' "$isol8_number" >&"${isol8_aside[0]}"
    \isol8_status
}

isol8_interrupted() {
    isol8_signal=$1
    builtin exit $((128 + $1))
}

# Takes out of our way what the cell set: its options, until the next cell, and functions that hide
# `builtin`, or `exec`, which is no use through `builtin`. Only in POSIX mode is a builtin found before
# a function; what else that mode changes is put back.
isol8_settle() {
    [[ ! $isol8_settled ]] || builtin return 0
    isol8_flags=${-//[!aefkuvxET]/} isol8_shopts=$BASHOPTS isol8_options=''
    if [[ -o posix ]]; then
        set +aefkuvxET
        unset -f builtin exec
    else
        POSIXLY_CORRECT=1
        set +aefkuvxET
        unset -f builtin exec
        builtin unset -v POSIXLY_CORRECT
    fi
    [[ ${isol8_undo[$isol8_shopts]-} ]] || isol8_learn_undo
    builtin eval "${isol8_undo[$isol8_shopts]}"
    builtin trap '' INT
    [[ $isol8_flags != *a* ]] || builtin export -n "${!isol8_@}"
    isol8_options+=${isol8_flags:+"isol8_= \\builtin set -$isol8_flags; "}
    isol8_settled=1
}

# The command that restores these options is computed once, because matching costs more than all the rest.
isol8_learn_undo() {
    isol8_line=:
    [[ :$isol8_shopts: != *:expand_aliases:* ]] || isol8_line+='; builtin shopt -s expand_aliases'
    [[ :$isol8_shopts: == *:inherit_errexit:* ]] || isol8_line+='; builtin shopt -u inherit_errexit'
    [[ :$isol8_shopts: != *:shift_verbose:* ]] || isol8_line+='; builtin shopt -s shift_verbose'
    [[ :$isol8_shopts: == *:sourcepath:* ]] || isol8_line+='; builtin shopt -u sourcepath'
    [[ :$isol8_shopts: != *:extdebug:* ]] ||
        isol8_line+='; builtin shopt -u extdebug; isol8_options="isol8_= \\builtin shopt -s extdebug; "'
    isol8_undo[$isol8_shopts]=$isol8_line
}

isol8_status() {
    builtin return "$isol8_code"
}

isol8_end() {
    isol8_status=$?
    # The cell has ended, or its directory could not be entered. There is a second call because some errors make bash
    # forget the rest of the line.
    [[ $isol8_number ]] || builtin return 0
    isol8_code=$isol8_status
    isol8_settle
    # There it gets the top level, and may exit.
    [[ ! $isol8_cleanup ]] || builtin exit "$isol8_code"
    isol8_finish
}

isol8_finish() {
    for isol8_i in "${!isol8_old[@]}"; do
        isol8_name=${isol8_fields[isol8_i]}
        # Variables that the cell has changed itself are to stay.
        [[ ${!isol8_name+x} && ${!isol8_name} == "${isol8_fields[isol8_i + 1]}" ]] || builtin continue
        if [[ ! ${isol8_old[isol8_i]} ]]; then
            builtin unset -v "$isol8_name"
            builtin continue
        fi
        builtin export "$isol8_name=${isol8_old[isol8_i]#*=}"
        [[ ${isol8_old[isol8_i]%%=*} == *x* ]] || builtin export -n "$isol8_name"
    done
    if [[ $isol8_from && $PWD == "$isol8_to" ]] && builtin cd -- "$isol8_from"; then
        OLDPWD=$isol8_oldpwd
    fi
    isol8_answer="cell $isol8_number code $isol8_code"
    [[ ! $isol8_signal ]] || isol8_answer="cell $isol8_number signal $isol8_signal"
    isol8_number='' isol8_source='' isol8_fields=()
    builtin printf '%s\n' "$isol8_answer" >&0
}

# The trap on EXIT: gets the code, and the positional parameters, which only the top level knows.
isol8_leave() {
    # Else it is the end of the control socket. No `return`, which the user may have hidden: going on
    # from there would execute bash for ever.
    if [[ $isol8_number ]]; then
        isol8_code=$1 isol8_arguments=("${@:2}")
        isol8_settle
        isol8_ending=$isol8_cleanup isol8_cleanup=''
        # Bash undoes no redirections of what it was in the middle of.
        if [[ -S /proc/self/fd/${isol8_aside[0]} ]]; then
            # By way of 1, for a copy of what is close-on-exec would be so as well.
            exec >&"${isol8_aside[1]}" 251>&1
            exec >&"${isol8_aside[3]}" 253>&1
            exec >&"${isol8_aside[2]}" 252>&1 0>&"${isol8_aside[0]}"
        fi
        isol8_dump >|/proc/self/fd/251
        # A signal that is ignored by then could never be trapped again.
        builtin trap - "${!isol8_own[@]}" "${isol8_numbers[@]}"
        # Bash would heed these before it reads anything.
        builtin export -n POSIXLY_CORRECT SHELLOPTS BASHOPTS
        BASH_ENV=/proc/self/fd/251 exec -a bash /proc/self/exe -s >&252 2>&253
    fi
}

# Prints what makes another bash continue where this one is. Functions come late, since they may hide
# what the rest needs; and only behind them POSIX mode, which refuses some, and aliases.
isol8_dump() {
    builtin printf '%s\n' 'exec >/dev/null 2>&1' 'unset BASH_ENV'
    builtin shopt -p
    isol8_last=('builtin shopt -u expand_aliases')
    ! builtin shopt -q expand_aliases || isol8_last=('builtin shopt -s expand_aliases')
    [[ ! -o posix ]] || isol8_last=('builtin set -o posix' "${isol8_last[@]}")
    builtin set +o posix
    builtin printf 'shopt -u expand_aliases\n'
    builtin declare -p
    builtin alias -p
    builtin printf 'SECONDS=%s\nset --' "$SECONDS"
    builtin printf ' %s' "${isol8_arguments[@]@Q}"
    builtin printf '\n'
    builtin trap -p "${isol8_numbers[@]}"
    builtin set +o
    builtin declare -f
    builtin declare -F
    builtin printf '%s\n' "${isol8_last[@]}" 'exec >&252 2>&253' '\isol8_arm'
    for isol8_name in DEBUG ERR RETURN; do
        [[ ! -v isol8_traps[$isol8_name] ]] ||
            builtin printf '\\trap -- %s %s\n' "${isol8_traps[$isol8_name]@Q}" "$isol8_name"
    done
    builtin printf '%s\n' '\isol8_status' \
        '\builtin eval "$isol8_ending" </dev/null 251>&- 252>&- 253>&-; { \isol8_finish; } >/dev/null 2>&1'
}

isol8_arm() {
    for isol8_name in "${!isol8_own[@]}"; do
        builtin trap -- "${isol8_traps[$isol8_name]-isol8_interrupted ${isol8_own[$isol8_name]}}" "$isol8_name"
    done
    builtin trap '' INT
    builtin trap '{ isol8_leave "$?" "$@"; } 2>/dev/null' EXIT
}

trap() {
    if [[ ${1--p} == -p ]]; then
        isol8_show_traps "${@:2}"
        builtin return
    fi
    if [[ $BASHPID != "$$" || $1 == -l ]]; then
        builtin trap "$@"
        builtin return
    fi
    [[ $1 != -- ]] || builtin shift
    (($# > 1)) || builtin set -- - "$@"
    isol8_action=$1 isol8_signals=()
    for isol8_name in "${@:2}"; do
        isol8_signal_name
        case $isol8_name in
        EXIT)
            isol8_cleanup=${isol8_action#-}
            ;;
        DEBUG | ERR | RETURN)
            isol8_note_trap
            # Not for commands of ours. Leaving this function would undo its removal.
            builtin trap -- "case \${FUNCNAME-}:\$BASH_COMMAND in trap:* | *isol8_*) ;; *) ${isol8_traps[$isol8_name]-:}
;; esac" "$isol8_name"
            ;;
        *)
            if [[ ! ${isol8_own[$isol8_name]-} ]]; then
                isol8_signals+=("$isol8_name")
                builtin continue
            fi
            isol8_note_trap
            builtin trap -- "${isol8_traps[$isol8_name]-isol8_interrupted ${isol8_own[$isol8_name]}}" "$isol8_name"
            ;;
        esac
    done
    [[ ! ${isol8_signals[*]} ]] || builtin trap -- "$isol8_action" "${isol8_signals[@]}"
}

isol8_signal_name() {
    isol8_name=${isol8_name^^}
    isol8_name=${isol8_name#SIG}
    case $isol8_name in
    0) isol8_name=EXIT ;;
    [1-9] | [1-9][0-9]) isol8_name=${isol8_named[isol8_name]-$isol8_name} ;;
    POLL) isol8_name=IO ;;
    esac
}

isol8_note_trap() {
    isol8_traps[$isol8_name]=$isol8_action
    [[ $isol8_action != - ]] || builtin unset -v "isol8_traps[$isol8_name]"
}

# Shows the traps of the user, and not ours.
isol8_show_traps() {
    (($#)) || builtin set -- EXIT {1..31} {34..64} DEBUG ERR RETURN
    for isol8_name; do
        isol8_signal_name
        case $isol8_name in
        EXIT)
            [[ ! $isol8_cleanup ]] || builtin printf 'trap -- %s EXIT\n' "${isol8_cleanup@Q}"
            ;;
        DEBUG | ERR | RETURN)
            isol8_show_trap
            ;;
        *)
            if [[ ${isol8_own[$isol8_name]-} ]]; then
                isol8_show_trap
            else
                builtin trap -p "$isol8_name"
            fi
            ;;
        esac
    done
}

isol8_show_trap() {
    [[ ! -v isol8_traps[$isol8_name] ]] || builtin printf 'trap -- %s %s\n' \
        "${isol8_traps[$isol8_name]@Q}" "${isol8_own[$isol8_name]+SIG}$isol8_name"
}

ulimit() {
    [[ $BASHPID != "$$" ]] || isol8_allows_limit "$@" || builtin return 1
    builtin ulimit "$@"
}

isol8_allows_limit() {
    isol8_limit=''
    for isol8_name; do
        case $isol8_name in
        -*n[0-9]*) isol8_limit=${isol8_name#*n} ;;
        -*n) isol8_limit=next ;;
        [0-9]*) [[ $isol8_limit != next ]] || isol8_limit=$isol8_name ;;
        *) isol8_limit='' ;;
        esac
        if [[ $isol8_limit == +([0-9]) ]] && ((10#$isol8_limit < 256)); then
            builtin printf 'ulimit: the shell of a session needs 256 open files; %s\n' \
                "set fewer for what runs in a subshell: (ulimit -n $isol8_limit; ...)" >&2
            builtin return 1
        fi
    done
}

unset BASH_ENV
isol8_number='' isol8_code=0 isol8_options='' isol8_cleanup='' isol8_aside=()
# The user's traps for which bash has one of ours, and what ours are told.
declare -A isol8_traps=() isol8_undo=() isol8_own=([HUP]=1 [INT]=2 [QUIT]=3 [TRAP]=5 [ABRT]=6 [USR1]=10
    [USR2]=12 [PIPE]=13 [ALRM]=14 [TERM]=15 [STKFLT]=16 [XCPU]=24 [XFSZ]=25 [VTALRM]=26 [PROF]=27 [IO]=29
    [PWR]=30 [SYS]=31)
isol8_named=()
for isol8_name in "${!isol8_own[@]}"; do
    isol8_named[isol8_own[$isol8_name]]=$isol8_name
done
# All other signals.
isol8_numbers=(4 7 8 9 11 {17..23} 28 {34..64})
isol8_arm
