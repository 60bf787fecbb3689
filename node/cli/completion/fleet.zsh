#compdef fleet
# Completion of fleet for zsh. Write it to a file _fleet in a directory of
# $fpath, or load it after compinit with
#   source <(fleet completion zsh)

_fleet() {
    local mode="" line value about
    local -a values shown
    # Nothing that is read here is expanded or evaluated.
    while IFS= read -r line; do
        if [[ -z "$mode" ]]; then
            mode="$line"
            continue
        fi
        value="${line%%$'\t'*}"
        about="${line#*$'\t'}"
        values+=("$value")
        if [[ -n "$about" ]]; then
            shown+=("$value  -- $about")
        else
            shown+=("$value")
        fi
    done < <(command fleet __complete -- "${(@Q)words[2,CURRENT]}" 2>/dev/null)
    case "$mode" in
    :files | :dirs)
        compset -P '-*='
        if [[ "$mode" == :files ]]; then
            _files
        else
            _files -/
        fi
        ;;
    :nospace)
        (( $#values )) && compadd -S '' -l -d shown -a values
        ;;
    *)
        (( $#values )) && compadd -l -d shown -a values
        ;;
    esac
}

if [[ "${funcstack[1]}" == _fleet ]]; then
    _fleet "$@"
else
    compdef _fleet fleet
fi
