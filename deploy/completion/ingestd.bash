# bash completion of ingestd; the program itself knows the words.
_ingestd_completion() {
    local IFS=$'\n'
    COMPREPLY=($(env COMP_WORDS="${COMP_WORDS[*]}" COMP_CWORD="$COMP_CWORD" \
        _INGESTD_COMPLETE=complete_bash "$1"))
    return 0
}

complete -o default -F _ingestd_completion ingestd
