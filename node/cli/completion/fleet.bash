# Completion of fleet for bash. Load it with
#   source <(fleet completion bash)
# or write it to /usr/share/bash-completion/completions/fleet.

_fleet() {
    local line="${COMP_LINE:0:COMP_POINT}" current="${COMP_WORDS[COMP_CWORD]}"
    local full="${line##*[[:space:]]}" mode="" value about
    # bash splits words at =, : and @, as COMP_WORDBREAKS says, and replaces only
    # the last part.
    if [[ "$current" == [=:@] && "$COMP_WORDBREAKS" == *"$current"* ]]; then
        current=""
    fi
    local cut=$((${#full} - ${#current}))
    ((cut >= 0)) || cut=0
    COMPREPLY=()
    # Nothing that is read here is expanded or evaluated.
    while IFS=$'\t' read -r value about; do
        if [[ -z "$mode" ]]; then
            mode="$value"
            continue
        fi
        COMPREPLY+=("${value:cut}")
    done < <(command fleet __complete --line "$line" 2>/dev/null)
    case "$mode" in
    :nospace)
        compopt -o nospace 2>/dev/null
        ;;
    :files | :dirs)
        compopt -o filenames 2>/dev/null
        local kind=-f
        [[ "$mode" == :files ]] || kind=-d
        while IFS= read -r value; do
            COMPREPLY+=("$value")
        done < <(compgen "$kind" -- "$current")
        ;;
    esac
}

complete -F _fleet fleet
