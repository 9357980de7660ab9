"""The part of docs/upstreams.md about upstreams that fail. Text only."""

from __future__ import annotations

FAILING = """\
## Several upstreams

```yaml
routes:
  - match: {campaign: newsletter}
    upstream: {bulk: 80, other: 20}    # by weight
  - upstream: [team, spare]            # in order
```

In order, the first that can be used at the moment carries the mail. By weight, each message draws its upstream from its
id: every worker, and every restart, draws the same. The others stand in for one that cannot be used.

Not to be used is an upstream that is paused (it could not be reached, or refused our login, our TLS or us), suspended,
or in a storm. New mail goes by the next at once; what waits moves there as fast as the next one works it off
(event `moved`, with the reason). Mail that moved stays where it is as long as that works; new mail goes by the first
again as soon as that works. Where the sender has no account at an upstream, that one does not count. Where none can be
used, mail waits. What may have arrived already (`uncertain`) never moves: the other upstream would send it again.

`overflow: NAME` is for budgets: once a budget of a day or longer is used up, mail goes by that upstream. One that is
merely paused does not overflow. `relayd config check` names an overflow that goes round in a circle.

## Pauses

Trouble of the upstream's own (connection, TLS, login, quota, the sender refused) pauses it, or the account that it
concerns: 5 s, doubling to 5 min. Then one message, of all workers together, probes; if it gets through, all go on. No
attempt is counted and nothing bounces. `upstream.paused` and `upstream.resumed` are in the log, with the reason, since
when, and when the next probe is; `relayd upstream list` shows who is paused now, `relayd upstream show NAME` what has
happened, `relayd_upstream_paused` and `relayd_upstream_events_total` count it. A restart tries at once.

## Concurrency

Each worker begins with two connections and takes one more with each success, up to its share of `limits.connections`.
Replies that say "slower" (421, 432, 450, 454, rate limits), time-outs and dropped connections halve the number; from
there it grows by one for each round of successes.

## Rules about replies

```yaml
rules:
  - upstream: acme               # absent: all
    match: 452 too many          # code, enhanced code, words; every part may be missing
    action: slow
    for: 10m
```

| action | what happens |
|---|---|
| `pause` | nothing goes out by this upstream, or account, for so long; then one message probes |
| `slow` | half as many connections, and no more for so long; the mail is tried again as usual |
| `defer` | this mail is not tried again before that |
| `next-upstream` | this mail goes by the next upstream that its route names |

A reply that a rule fits bounces nothing, whatever its code. In `match`, `x` is any digit of a code or any number of an
enhanced code; words are found in any case, next to each other; `a|b` is either word, `word-` any that begins so, `*` up
to six words of anything. It is no regular expression. The first rule that fits counts: yours, then those of the preset.

## Bounce storms

Providers that suspend an account refuse every recipient for good, like `550 5.7.1 account suspended`. Taken at its word
that would bounce all mail and block all addresses. So a refusal waits a moment: two seconds, or a third of one where
it speaks of the recipient (5.1.x, 5.2.x), and longer while others like it come. When `storm.replies` (20) different
recipients are refused in the same words within `storm.within` (1 min), it is taken for the upstream's fault:

- nothing of it bounces, and no address is blocked; what was refused waits,
- the upstream (or account) is suspended for all workers, until you say otherwise,
- `upstream.storm` is logged as an error and counted in `relayd_upstream_events_total`.

Ask the provider, then `relayd upstream resume NAME`: all of it is tried again. If the refusal was right,
`relayd upstream resume NAME --let-bounce` lets recipients bounce that are refused in these words, for a day.

Addresses, numbers and ids in a reply make no difference. Each worker counts for itself, by its part of the number.
Refusals that speak of the recipient count only as long as nothing is delivered between them: a stale list among mail
that arrives is no storm, and its bounces are not held up. A list of twenty dead addresses and nothing else is one; that
is the price. Refusals that do not speak of the recipient count in any case. The first few of a storm can bounce where
they come more than two seconds apart. `storm: {replies: 0}` switches it off; the sandbox has none.

## By hand

    relayd upstream suspend acme --for 2h --reason "they are moving"
    relayd upstream suspend team/info@example.jp
    relayd upstream resume acme
    relayd queue move --from acme --to spare --sender "*@shop.example.com" --reason "acme is down"

A suspension holds over restarts, and every worker knows within a second. Mail that was moved by hand stays where it was
put, whatever the routes say, until it is moved again or that upstream is taken out of the configuration. Who did it and
why is kept: `relayd upstream show`, `relayd message show`.

"""
