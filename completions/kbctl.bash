# bash completion of kbctl. Made by: python -m kbctl.commands.completion

_kbctl() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]}
    local command=kbctl options words at
    COMPREPLY=()
    # bash splits --option=value at the sign
    if [[ $cur == "=" ]]; then cur=""
    elif [[ $prev == "=" ]]; then prev=${COMP_WORDS[COMP_CWORD-2]}
    fi
    for ((at = 1; at < COMP_CWORD; at++)); do
        case "$command ${COMP_WORDS[at]}" in
            "kbctl up"|"kbctl down"|"kbctl status"|"kbctl logs"|"kbctl issue"|"kbctl keys"|"kbctl show"|"kbctl revoke"|"kbctl audit"|"kbctl demo"|"kbctl completion"|"kbctl credential"|"kbctl credential set"|"kbctl credential list"|"kbctl credential remove") command+=" ${COMP_WORDS[at]}" ;;
        esac
    done
    case "$command $prev" in
        "kbctl up --port"|"kbctl up --upstream")
            return ;;
        "kbctl logs --lines"|"kbctl logs -n")
            return ;;
        "kbctl issue --cap")
            COMPREPLY=($(compgen -W "none" -- "$cur")); return ;;
        "kbctl issue --ttl")
            COMPREPLY=($(compgen -W "never" -- "$cur")); return ;;
        "kbctl issue --tenant"|"kbctl issue --total-cap"|"kbctl issue --call-cap"|"kbctl issue --vendor"|"kbctl issue --allow"|"kbctl issue --deny"|"kbctl issue --label"|"kbctl issue --meta"|"kbctl issue --credential")
            return ;;
        "kbctl keys --status")
            COMPREPLY=($(compgen -W "active frozen revoked expired all" -- "$cur")); return ;;
        "kbctl keys --tenant"|"kbctl keys --label")
            return ;;
        "kbctl revoke --tenant"|"kbctl revoke --label")
            return ;;
        "kbctl audit --label"|"kbctl audit --tenant"|"kbctl audit --key"|"kbctl audit --vendor"|"kbctl audit --since"|"kbctl audit --from"|"kbctl audit --to"|"kbctl audit --limit")
            return ;;
        "kbctl credential set --vendor")
            return ;;
    esac
    case "$command" in
        "kbctl")
            options="--version --help -h"
            words="up down status logs issue keys show revoke audit demo completion credential" ;;
        "kbctl up")
            options="--sandbox --port --upstream --foreground --accept-rollback --passphrase-stdin --json --help -h"
            words="" ;;
        "kbctl down")
            options="--help -h"
            words="" ;;
        "kbctl status")
            options="--json --help -h"
            words="" ;;
        "kbctl logs")
            options="--follow -f --lines -n --help -h"
            words="" ;;
        "kbctl issue")
            options="--tenant --cap --total-cap --call-cap --vendor --allow --deny --ttl --label --meta --credential --json --help -h"
            words="" ;;
        "kbctl keys")
            options="--tenant --label --status --json --jsonl --csv --help -h"
            words="" ;;
        "kbctl show")
            options="--json --help -h"
            words="" ;;
        "kbctl revoke")
            options="--tenant --label --all --yes -y --json --help -h"
            words="" ;;
        "kbctl audit")
            options="--label --tenant --key --vendor --denied --unknown --since --from --to --limit --follow -f --json --jsonl --csv --help -h"
            words="" ;;
        "kbctl demo")
            options="--json --help -h"
            words="" ;;
        "kbctl completion")
            options="--help -h"
            words="bash zsh fish" ;;
        "kbctl credential")
            options="--help -h"
            words="set list remove" ;;
        "kbctl credential set")
            options="--vendor --help -h"
            words="" ;;
        "kbctl credential list")
            options="--json --help -h"
            words="" ;;
        "kbctl credential remove")
            options="--yes -y --help -h"
            words="" ;;
    esac
    if [[ $cur == -* ]]; then words=$options; fi
    COMPREPLY=($(compgen -W "$words" -- "$cur"))
}

complete -F _kbctl kbctl
