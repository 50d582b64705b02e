# bash completion of kbctl. Made by: python -m kbctl.commands.completion

_kbctl() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]}
    local command=kbctl options words files at
    COMPREPLY=()
    # bash splits --option=value at the sign
    if [[ $cur == "=" ]]; then cur=""
    elif [[ $prev == "=" ]]; then prev=${COMP_WORDS[COMP_CWORD-2]}
    fi
    for ((at = 1; at < COMP_CWORD; at++)); do
        case "$command ${COMP_WORDS[at]}" in
            "kbctl up"|"kbctl down"|"kbctl status"|"kbctl logs"|"kbctl issue"|"kbctl keys"|"kbctl show"|"kbctl pause"|"kbctl resume"|"kbctl revoke"|"kbctl run"|"kbctl env"|"kbctl explain"|"kbctl resolve"|"kbctl reconcile"|"kbctl spend"|"kbctl changes"|"kbctl sql"|"kbctl prune"|"kbctl backup"|"kbctl restore"|"kbctl demo"|"kbctl completion"|"kbctl credential"|"kbctl credential set"|"kbctl credential list"|"kbctl credential remove"|"kbctl policy"|"kbctl policy set"|"kbctl policy apply"|"kbctl policy list"|"kbctl policy show"|"kbctl policy remove"|"kbctl tenant"|"kbctl tenant set"|"kbctl tenant list"|"kbctl tenant show"|"kbctl audit"|"kbctl audit verify"|"kbctl audit checkpoint"|"kbctl audit export"|"kbctl vendor"|"kbctl vendor list"|"kbctl vendor show"|"kbctl vendor prices"|"kbctl vendor check"|"kbctl token"|"kbctl token create"|"kbctl token list"|"kbctl token revoke"|"kbctl service"|"kbctl service install"|"kbctl service uninstall") command+=" ${COMP_WORDS[at]}" ;;
        esac
    done
    case "$command $prev" in
        "kbctl up --port"|"kbctl up --upstream")
            return ;;
        "kbctl logs --lines"|"kbctl logs -n")
            return ;;
        "kbctl issue --cap")
            COMPREPLY=($(compgen -W "none" -- "$cur")); return ;;
        "kbctl issue --total-cap")
            COMPREPLY=($(compgen -W "none" -- "$cur")); return ;;
        "kbctl issue --call-cap")
            COMPREPLY=($(compgen -W "none" -- "$cur")); return ;;
        "kbctl issue --requests")
            COMPREPLY=($(compgen -W "none" -- "$cur")); return ;;
        "kbctl issue --rate")
            COMPREPLY=($(compgen -W "none" -- "$cur")); return ;;
        "kbctl issue --loop")
            COMPREPLY=($(compgen -W "none" -- "$cur")); return ;;
        "kbctl issue --on-loop")
            COMPREPLY=($(compgen -W "deny pause" -- "$cur")); return ;;
        "kbctl issue --duplicates")
            COMPREPLY=($(compgen -W "flag refuse none" -- "$cur")); return ;;
        "kbctl issue --ttl")
            COMPREPLY=($(compgen -W "never" -- "$cur")); return ;;
        "kbctl issue --tenant"|"kbctl issue --vendor"|"kbctl issue --allow"|"kbctl issue --deny"|"kbctl issue --param"|"kbctl issue --policy"|"kbctl issue --parent"|"kbctl issue --label"|"kbctl issue --meta"|"kbctl issue --credential")
            return ;;
        "kbctl keys --status")
            COMPREPLY=($(compgen -W "active paused frozen revoked expired all" -- "$cur")); return ;;
        "kbctl keys --tenant"|"kbctl keys --label")
            return ;;
        "kbctl revoke --tenant"|"kbctl revoke --label")
            return ;;
        "kbctl run --cap")
            COMPREPLY=($(compgen -W "none" -- "$cur")); return ;;
        "kbctl run --total-cap")
            COMPREPLY=($(compgen -W "none" -- "$cur")); return ;;
        "kbctl run --call-cap")
            COMPREPLY=($(compgen -W "none" -- "$cur")); return ;;
        "kbctl run --requests")
            COMPREPLY=($(compgen -W "none" -- "$cur")); return ;;
        "kbctl run --rate")
            COMPREPLY=($(compgen -W "none" -- "$cur")); return ;;
        "kbctl run --loop")
            COMPREPLY=($(compgen -W "none" -- "$cur")); return ;;
        "kbctl run --on-loop")
            COMPREPLY=($(compgen -W "deny pause" -- "$cur")); return ;;
        "kbctl run --duplicates")
            COMPREPLY=($(compgen -W "flag refuse none" -- "$cur")); return ;;
        "kbctl run --ttl")
            COMPREPLY=($(compgen -W "never" -- "$cur")); return ;;
        "kbctl run --tenant"|"kbctl run --vendor"|"kbctl run --allow"|"kbctl run --deny"|"kbctl run --param"|"kbctl run --policy"|"kbctl run --parent"|"kbctl run --label"|"kbctl run --meta"|"kbctl run --credential")
            return ;;
        "kbctl env --cap")
            COMPREPLY=($(compgen -W "none" -- "$cur")); return ;;
        "kbctl env --total-cap")
            COMPREPLY=($(compgen -W "none" -- "$cur")); return ;;
        "kbctl env --call-cap")
            COMPREPLY=($(compgen -W "none" -- "$cur")); return ;;
        "kbctl env --requests")
            COMPREPLY=($(compgen -W "none" -- "$cur")); return ;;
        "kbctl env --rate")
            COMPREPLY=($(compgen -W "none" -- "$cur")); return ;;
        "kbctl env --loop")
            COMPREPLY=($(compgen -W "none" -- "$cur")); return ;;
        "kbctl env --on-loop")
            COMPREPLY=($(compgen -W "deny pause" -- "$cur")); return ;;
        "kbctl env --duplicates")
            COMPREPLY=($(compgen -W "flag refuse none" -- "$cur")); return ;;
        "kbctl env --ttl")
            COMPREPLY=($(compgen -W "never" -- "$cur")); return ;;
        "kbctl env --format")
            COMPREPLY=($(compgen -W "sh fish dotenv json" -- "$cur")); return ;;
        "kbctl env --tenant"|"kbctl env --vendor"|"kbctl env --allow"|"kbctl env --deny"|"kbctl env --param"|"kbctl env --policy"|"kbctl env --parent"|"kbctl env --label"|"kbctl env --meta"|"kbctl env --credential")
            return ;;
        "kbctl resolve --spent"|"kbctl resolve --note")
            return ;;
        "kbctl reconcile --credential"|"kbctl reconcile --since"|"kbctl reconcile --from"|"kbctl reconcile --to")
            return ;;
        "kbctl spend --by")
            COMPREPLY=($(compgen -W "key tenant vendor label agent run day" -- "$cur")); return ;;
        "kbctl spend --since"|"kbctl spend --from"|"kbctl spend --to")
            return ;;
        "kbctl changes --subject"|"kbctl changes --since"|"kbctl changes --from"|"kbctl changes --to"|"kbctl changes --limit")
            return ;;
        "kbctl prune --before")
            return ;;
        "kbctl credential set --vendor"|"kbctl credential set --field")
            return ;;
        "kbctl policy set --cap")
            COMPREPLY=($(compgen -W "none" -- "$cur")); return ;;
        "kbctl policy set --total-cap")
            COMPREPLY=($(compgen -W "none" -- "$cur")); return ;;
        "kbctl policy set --call-cap")
            COMPREPLY=($(compgen -W "none" -- "$cur")); return ;;
        "kbctl policy set --requests")
            COMPREPLY=($(compgen -W "none" -- "$cur")); return ;;
        "kbctl policy set --rate")
            COMPREPLY=($(compgen -W "none" -- "$cur")); return ;;
        "kbctl policy set --loop")
            COMPREPLY=($(compgen -W "none" -- "$cur")); return ;;
        "kbctl policy set --on-loop")
            COMPREPLY=($(compgen -W "deny pause" -- "$cur")); return ;;
        "kbctl policy set --duplicates")
            COMPREPLY=($(compgen -W "flag refuse none" -- "$cur")); return ;;
        "kbctl policy set --ttl")
            COMPREPLY=($(compgen -W "never" -- "$cur")); return ;;
        "kbctl policy set --vendor"|"kbctl policy set --allow"|"kbctl policy set --deny"|"kbctl policy set --param")
            return ;;
        "kbctl tenant set --cap")
            COMPREPLY=($(compgen -W "none" -- "$cur")); return ;;
        "kbctl tenant set --total-cap")
            COMPREPLY=($(compgen -W "none" -- "$cur")); return ;;
        "kbctl tenant set --call-cap")
            COMPREPLY=($(compgen -W "none" -- "$cur")); return ;;
        "kbctl tenant set --requests")
            COMPREPLY=($(compgen -W "none" -- "$cur")); return ;;
        "kbctl tenant set --rate")
            COMPREPLY=($(compgen -W "none" -- "$cur")); return ;;
        "kbctl audit --label"|"kbctl audit --tenant"|"kbctl audit --key"|"kbctl audit --vendor"|"kbctl audit --since"|"kbctl audit --from"|"kbctl audit --to"|"kbctl audit --limit")
            return ;;
        "kbctl audit verify --since"|"kbctl audit verify --key")
            return ;;
        "kbctl audit export --format")
            COMPREPLY=($(compgen -W "jsonl csv" -- "$cur")); return ;;
        "kbctl audit export --output"|"kbctl audit export -o") COMPREPLY=($(compgen -f -- "$cur")); return ;;
        "kbctl audit export --label"|"kbctl audit export --tenant"|"kbctl audit export --key"|"kbctl audit export --vendor"|"kbctl audit export --since"|"kbctl audit export --from"|"kbctl audit export --to")
            return ;;
        "kbctl vendor prices --model")
            return ;;
        "kbctl token create --scope")
            COMPREPLY=($(compgen -W "read issue admin" -- "$cur")); return ;;
        "kbctl token create --ttl")
            COMPREPLY=($(compgen -W "never" -- "$cur")); return ;;
        "kbctl token create --note")
            return ;;
    esac
    case "$command" in
        "kbctl")
            options="--version --help -h"
            words="up down status logs issue keys show pause resume revoke run env explain resolve reconcile spend changes sql prune backup restore demo completion credential policy tenant audit vendor token service" ;;
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
            options="--tenant --cap --total-cap --call-cap --vendor --allow --deny --param --requests --rate --loop --on-loop --duplicates --ttl --policy --override --parent --label --meta --stamp --credential --json --help -h"
            words="" ;;
        "kbctl keys")
            options="--tenant --label --status --json --jsonl --csv --help -h"
            words="" ;;
        "kbctl show")
            options="--tree --json --help -h"
            words="" ;;
        "kbctl pause")
            options="--json --help -h"
            words="" ;;
        "kbctl resume")
            options="--json --help -h"
            words="" ;;
        "kbctl revoke")
            options="--tenant --label --all --abort --yes -y --json --help -h"
            words="" ;;
        "kbctl run")
            options="--tenant --cap --total-cap --call-cap --vendor --allow --deny --param --requests --rate --loop --on-loop --duplicates --ttl --policy --override --parent --label --meta --stamp --credential --no-shim --quiet -q --help -h"
            words="" ;;
        "kbctl env")
            options="--tenant --cap --total-cap --call-cap --vendor --allow --deny --param --requests --rate --loop --on-loop --duplicates --ttl --policy --override --parent --label --meta --stamp --credential --issue --format --help -h"
            words="" ;;
        "kbctl explain")
            options="--json --help -h"
            words="" ;;
        "kbctl resolve")
            options="--spent --void --note --json --help -h"
            words="" ;;
        "kbctl reconcile")
            options="--credential --since --from --to --json --help -h"
            words="" ;;
        "kbctl spend")
            options="--by --since --from --to --json --csv --help -h"
            words="" ;;
        "kbctl changes")
            options="--subject --since --from --to --limit --json --jsonl --csv --help -h"
            words="" ;;
        "kbctl sql")
            options="--json --jsonl --csv --help -h"
            words="" ;;
        "kbctl prune")
            options="--before --dry-run --yes -y --json --help -h"
            words="" ;;
        "kbctl backup")
            options="--force --json --help -h"
            words="" files=1 ;;
        "kbctl restore")
            options="--sandbox --yes -y --json --help -h"
            words="" files=1 ;;
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
            options="--vendor --field --help -h"
            words="" ;;
        "kbctl credential list")
            options="--json --help -h"
            words="" ;;
        "kbctl credential remove")
            options="--yes -y --help -h"
            words="" ;;
        "kbctl policy")
            options="--help -h"
            words="set apply list show remove" ;;
        "kbctl policy set")
            options="--cap --total-cap --call-cap --vendor --allow --deny --param --requests --rate --loop --on-loop --duplicates --ttl --stamp --live --json --help -h"
            words="" ;;
        "kbctl policy apply")
            options="--live --dry-run --json --help -h"
            words="" files=1 ;;
        "kbctl policy list")
            options="--json --help -h"
            words="" ;;
        "kbctl policy show")
            options="--json --help -h"
            words="" ;;
        "kbctl policy remove")
            options="--help -h"
            words="" ;;
        "kbctl tenant")
            options="--help -h"
            words="set list show" ;;
        "kbctl tenant set")
            options="--cap --total-cap --call-cap --requests --rate --json --help -h"
            words="" ;;
        "kbctl tenant list")
            options="--json --help -h"
            words="" ;;
        "kbctl tenant show")
            options="--json --help -h"
            words="" ;;
        "kbctl audit")
            options="--label --tenant --key --vendor --denied --unknown --duplicates --since --from --to --limit --follow -f --json --jsonl --csv --help -h"
            words="verify checkpoint export" ;;
        "kbctl audit verify")
            options="--since --incremental --key --json --help -h"
            words="" files=1 ;;
        "kbctl audit checkpoint")
            options="--json --help -h"
            words="" ;;
        "kbctl audit export")
            options="--format --output -o --label --tenant --key --vendor --denied --unknown --duplicates --since --from --to --help -h"
            words="" ;;
        "kbctl vendor")
            options="--help -h"
            words="list show prices check" ;;
        "kbctl vendor list")
            options="--json --help -h"
            words="" ;;
        "kbctl vendor show")
            options="--json --help -h"
            words="" ;;
        "kbctl vendor prices")
            options="--model --json --help -h"
            words="" ;;
        "kbctl vendor check")
            options="--json --help -h"
            words="" files=1 ;;
        "kbctl token")
            options="--help -h"
            words="create list revoke" ;;
        "kbctl token create")
            options="--scope --ttl --note --json --help -h"
            words="" ;;
        "kbctl token list")
            options="--json --help -h"
            words="" ;;
        "kbctl token revoke")
            options="--json --help -h"
            words="" ;;
        "kbctl service")
            options="--help -h"
            words="install uninstall" ;;
        "kbctl service install")
            options="--system --print --help -h"
            words="" ;;
        "kbctl service uninstall")
            options="--system --help -h"
            words="" ;;
    esac
    if [[ $cur == -* ]]; then words=$options; fi
    COMPREPLY=($(compgen -W "$words" -- "$cur"))
    if [[ $files && $cur != -* ]]; then COMPREPLY+=($(compgen -f -- "$cur")); fi
}

complete -F _kbctl kbctl
