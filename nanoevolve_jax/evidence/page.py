"""The evidence card in words: its verdict in one sentence, and one page of Markdown."""

from collections.abc import Mapping
from typing import Any


def sentence(card: Mapping[str, Any]) -> str:
    """The verdict in one sentence."""
    name, verdict = card["id"], card["verdict"]["label"]
    if card["retuned_baseline"]:
        return (
            f"{name} is a retuned baseline: it differs from the baseline only in its recipe or "
            "multiplier, so its numbers belong in the baseline's recipe and calibration is due."
        )
    found = card["confirmation"]
    test, pairs = found["test"], found["pairs"]
    start = "In an exploratory comparison " if card.get("exploratory") else ""
    null = f"{start}{name} is not distinguishable from the tuned baseline: "
    if test["mean"] is None:
        return f"{null}{found['reason']}."
    gain = (
        f"{test['mean']:+.4f} bpb ({found['gain_in_sigma']:+.2f} sigma), "
        f"95 % interval {test['low']:+.4f} to {test['high']:+.4f}, p = {test['p']:.2g}"
    )
    if found["outcome"] != "win":
        return f"{null}mean gain over {pairs} paired seeds {gain}."
    return f"{start}{name} beats the tuned baseline over {pairs} paired seeds, {gain}: {verdict}."


def _interval(test: Mapping[str, Any]) -> str:
    if test["mean"] is None:
        return f"a run failed | | {test['p']:.3g} | {test['n']}"
    return (
        f"{test['mean']:+.4f} | {test['low']:+.4f} to {test['high']:+.4f} "
        f"| {test['p']:.3g} | {test['n']}"
    )


def to_markdown(card: Mapping[str, Any]) -> str:
    """The card as one page of Markdown."""
    calibration, confirmation = card["calibration"], card["confirmation"]
    lines = [
        f"# Evidence for {card['id']}",
        "",
        f"**{sentence(card)}**",
        "",
        f"Win level {card['level']['level']}"
        + (f"; not higher because {card['level']['missing']}" if card["level"]["missing"] else "")
        + (" (a static policy: level 2 does not apply)" if card["static"] else "")
        + ".",
        "",
        f"Change: {card['change']}.",
        f"Compared with: {card['baseline']['id']}, tuned, at its own best learning rate.",
        f"Searches started under this evaluation so far: {card['campaigns']}; confirmations of "
        f"this one that count: {card['confirmations']}.",
        "",
    ]
    if confirmation is not None:
        power = card["power"]
        lines += [
            "## Confirmation",
            "",
            f"Noise: sigma {calibration['sigma']:.4f} bpb between seeds, "
            f"{calibration['paired_sigma']:.4f} for twins that share a seed. A true gain of one "
            f"sigma wins with probability {power['strangers']['power_at_one_sigma']:.2f} if the "
            f"arms scatter apart, {power['twins']['power_at_one_sigma']:.2f} if they scatter "
            "together.",
            "",
            "| comparison | mean gain, bpb | 95 % interval | p, one-sided | n |",
            "| --- | ---: | ---: | ---: | ---: |",
            f"| {card['id']} over baseline | {_interval(confirmation['test'])} |",
        ]
        if card["attribution"] is not None:
            lines += [
                f"| {name} | {_interval(test)} |"
                for name, test in card["attribution"]["contrasts"].items()
            ]
        lines += ["", f"Decision: {confirmation['outcome']}; {confirmation['reason']}.", ""]
        rates = confirmation["learning_rates"]
        lines += [
            "Learning rates, on promotion seeds: baseline "
            f"{_factor(rates['baseline'])}, candidate {_factor(rates['winner'])}.",
            "",
            "| seed | baseline bpb | candidate bpb |",
            "| ---: | ---: | ---: |",
        ]
        rows = zip(
            card["seeds"], confirmation["baseline_bpb"], confirmation["winner_bpb"], strict=True
        )
        lines += [
            f"| {seed} | {_number(baseline)} | {_number(candidate)} |"
            for seed, baseline, candidate in rows
        ]
        target = confirmation["to_target"]
        if target is not None and target["winner_steps"] is not None:
            lines += [
                "",
                f"To the baseline's final {target['bpb']:.4f} bpb: "
                f"{target['winner_steps']:.0f} steps against {target['baseline_steps']:.0f}, "
                f"{target['winner_cost_over_baseline']:.3f} of the compute (curves of "
                f"{card['evaluations']} validations, interpolated).",
            ]
        elif target is not None:
            lines += ["", f"It never reaches the baseline's final {target['bpb']:.4f} bpb."]
        lines.append("")
    if card.get("phases") is not None:
        thirds, drivers = card["phases"]["thirds"], card["phases"]["drivers"]
        lines += ["## What the policy does", "", "| | first third | middle | last |"]
        lines += ["| --- | ---: | ---: | ---: |"]
        lines += [
            f"| {name} | " + " | ".join(f"{x:.3f}" for x in values) + " |"
            for name, values in thirds.items()
        ]
        shares = ", ".join(f"{name} {share:.0%}" for name, share in drivers.items() if share)
        lines += ["", f"What drives the gate: {shares or 'nothing, it stands still'}.", ""]
    lines += ["## Compute spent", "", "| stage | runs | failed | tokens |"]
    lines += ["| --- | ---: | ---: | ---: |"]
    lines += [
        f"| {stage} | {spent['runs']} | {spent['failed']} | {spent['tokens']:,} |"
        for stage, spent in card["spent"].items()
    ]
    lines += ["", "## To reproduce", "", "```", *card["commands"], "```", ""]
    prints = ", ".join(f"{name} {value}" for name, value in card["fingerprints"].items())
    lines += [f"Fingerprints: {prints}.", ""]
    return "\n".join(lines)


def _factor(sweep: Mapping[str, Any]) -> str:
    if sweep["chosen"] is None:
        return "fails at all of them"
    edge = f", still at the {sweep['edge']} end of what was tried" if sweep["edge"] else ""
    return f"x{sweep['chosen']:.3g}{edge}"


def _number(value: float | None) -> str:
    return "failed" if value is None else f"{value:.4f}"
