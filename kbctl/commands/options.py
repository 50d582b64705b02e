"""The options that several commands share: the limits of a key, a policy or a tenant, and how to print."""

from typing import Annotated

import typer

Cap = Annotated[str | None, typer.Option(metavar="USD|none", help="Dollars a day (UTC), or none.")]
TotalCap = Annotated[str | None, typer.Option(metavar="USD|none", help="Dollars over the whole life.")]
CallCap = Annotated[str | None, typer.Option(metavar="USD|none", help="Dollars a call.")]
Vendor = Annotated[
    list[str] | None,
    typer.Option(metavar="V", help="Only this vendor. Repeatable. [default: all with a credential]"),
]
Allow = Annotated[
    list[str] | None,
    typer.Option(metavar="ENTRY", help="Only these calls: 'METHOD /path' or an operation. Repeatable."),
]
Deny = Annotated[
    list[str] | None, typer.Option(metavar="ENTRY", help="Not these calls, even if allowed. Repeatable.")
]
Param = Annotated[
    list[str] | None,
    typer.Option(metavar="RULE", help="What a field may be: 'customer in cus_1,cus_2'. Repeatable."),
]
Requests = Annotated[str | None, typer.Option(metavar="N|none", help="Requests a day (UTC).")]
Rate = Annotated[
    str | None, typer.Option(metavar="5/s|none", help="How fast: a bucket of so many, refilled steadily.")
]
Loop = Annotated[
    str | None, typer.Option(metavar="20/1m|none", help="How often the same request, in how long.")
]
OnLoop = Annotated[
    str | None,
    typer.Option(metavar="deny|pause", help="Beyond it: deny that request, or pause the key."),
]
Duplicates = Annotated[
    str | None,
    typer.Option(
        metavar="flag|refuse|none",
        help="A call that spends just as another did so soon before: refuse/1h. [default: flag/10m]",
    ),
]
Ttl = Annotated[str | None, typer.Option(metavar="2h|never", help="How long it lives. [default: 24h]")]
Stamp = Annotated[bool, typer.Option("--stamp", help="Write key and run into the vendor's own metadata.")]
Live = Annotated[bool, typer.Option("--live", help="Change the live keys of the policy, too.")]

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Jsonl = Annotated[bool, typer.Option("--jsonl", help="Print one JSON object a line.")]
Csv = Annotated[bool, typer.Option("--csv", help="Print CSV.")]
Since = Annotated[str | None, typer.Option(metavar="1h", help="How far back: 30m, 2h, 7d.")]
Start = Annotated[str | None, typer.Option("--from", metavar="TIME", help="Only from then on (UTC).")]
End = Annotated[str | None, typer.Option("--to", metavar="TIME", help="Only before then (UTC).")]
