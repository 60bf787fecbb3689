# Completion of fleet for fish. Load it with
#   fleet completion fish | source
# or write it to ~/.config/fish/completions/fleet.fish.

function __fleet_complete
    set -l before (commandline -opc)
    set -e before[1]
    set -l current (commandline -ct)
    # Nothing that is read here is expanded or evaluated.
    set -l lines (command fleet __complete -- $before "$current" 2>/dev/null)
    set -l mode $lines[1]
    set -e lines[1]
    switch "$mode"
        case ':files'
            set -l part (string replace -r -- '^-[^=]*=' '' "$current")
            set -l prefix (string match -r -- '^-[^=]*=' "$current")
            for path in (__fish_complete_path "$part")
                echo -- "$prefix$path"
            end
        case ':dirs'
            set -l part (string replace -r -- '^-[^=]*=' '' "$current")
            set -l prefix (string match -r -- '^-[^=]*=' "$current")
            for path in (__fish_complete_directories "$part" '')
                echo -- "$prefix$path"
            end
        case '*'
            printf '%s\n' $lines
    end
end

complete -c fleet -f -a '(__fleet_complete)'
