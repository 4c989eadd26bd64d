"""An evidence card as text: its verdict in a sentence, and a page of Markdown."""

import math
import re
from collections.abc import Mapping
from typing import Any

from nanoevolve_jax.escaping import visible, visible_lines
from nanoevolve_jax.evidence.levels import cell_gains, no_win, pooled
from nanoevolve_jax.evidence.statistics import paired_test

# Characters that could begin code, a link, an image, a table cell or an HTML tag in Markdown.
_MARKUP = re.compile(r"[\\`\[\]|]|<(?=[A-Za-z/!?])")


def sentence(card: Mapping[str, Any]) -> str:
    """Returns the verdict of a card in one sentence."""
    name, verdict = card["id"], card["verdict"]["label"]
    if card["retuned_baseline"]:
        return (
            f"{name} is a retuned baseline: it differs from the baseline only in its recipe or "
            "multiplier, so its numbers belong in the baseline's recipe and calibration is due."
        )
    confirmation = card["confirmation"]
    test, pairs = confirmation["test"], confirmation["pairs"]
    start = "In an exploratory comparison " if card.get("exploratory") else ""
    null = f"{start}{name} is not distinguishable from the tuned baseline: "
    if test["mean"] is None:
        return f"{null}{confirmation['reason']}."
    gain = (
        f"{test['mean']:+.4f} bpb ({confirmation['gain_in_sigma']:+.2f} sigma), "
        f"95 % interval {test['low']:+.4f} to {test['high']:+.4f}, p = {test['p']:.2g}"
    )
    if confirmation["outcome"] != "win":
        return f"{null}mean gain over {pairs} paired seeds {gain}."
    reason = no_win(card)
    counts = f" It does not count, for {reason}." if reason else ""
    won = f"{start}{name} beats the tuned baseline over {pairs} paired seeds, {gain}: {verdict}."
    return won + counts


def to_markdown(card: Mapping[str, Any]) -> str:
    """Returns a card as a page of Markdown. Strings of the card are shown as plain text."""
    sources, commands = card.get("sources") or {}, card["commands"]
    card = _as_text(card)
    level = card["level"]
    lines = [
        f"# Evidence for {card['id']}",
        "",
        f"**{sentence(card)}**",
        "",
        f"Win level {level['level']}"
        + (f"; not higher because {level['missing']}" if level["missing"] else "")
        + (" (a static policy: level 2 does not apply)" if card["static"] else "")
        + ".",
        "",
        f"Change: {card['change']}.",
        *_sources(sources),
        f"Compared with: {card['baseline']['id']}, tuned, at its own best learning rate.",
        f"Searches started under this evaluation so far: {card['campaigns']}; confirmations of "
        f"this one that count: {card['confirmations']}.",
        "",
    ]
    if card["confirmation"] is not None:
        lines += [*_confirmation(card), ""]
    if card.get("transfer") is not None:
        lines += [*_transfer(card["transfer"]), ""]
    if card.get("export") is not None:
        lines += [_export(card["export"]), ""]
    if card.get("phases") is not None:
        lines += [*_phases(card["phases"]), ""]
    lines += ["## Compute spent", "", "| stage | runs | failed | tokens |"]
    lines += ["| --- | ---: | ---: | ---: |"]
    lines += [
        f"| {stage} | {spent['runs']} | {spent['failed']} | {spent['tokens']:,} |"
        for stage, spent in card["spent"].items()
    ]
    lines += ["", "## To reproduce", "", "```", *map(visible, commands), "```", ""]
    prints = ", ".join(f"{name} {value}" for name, value in card["fingerprints"].items())
    lines += [f"Fingerprints: {prints}.", ""]
    return "\n".join(lines)


def _as_text(value: Any) -> Any:
    """Returns a document with its strings and field names escaped for Markdown."""
    if isinstance(value, str):
        return _MARKUP.sub(r"\\\g<0>", visible(value))
    if isinstance(value, Mapping):
        return {_as_text(name): _as_text(inner) for name, inner in value.items()}
    return [_as_text(inner) for inner in value] if isinstance(value, list | tuple) else value


def _sources(sources: Mapping[str, str]) -> list[str]:
    """Returns the sources of rewritten functions in fences that their text cannot close."""
    lines = []
    for slot, source in sources.items():
        ticks = max(map(len, re.findall("`+", source)), default=0)
        fence = "`" * max(3, ticks + 1)
        name = visible(slot).replace("`", "'")
        lines += [f"Its function `{name}`, rewritten:", "", f"{fence}python"]
        lines += [visible_lines(source.rstrip("\n")), fence, ""]
    return lines


def _confirmation(card: Mapping[str, Any]) -> list[str]:
    result = card["confirmation"]
    others = result.get("others", [])  # cards of older versions lack this field
    contrasts = {f"{card['id']} over baseline": result["test"]}
    contrasts |= {f"{card['id']} over {other['id']}": other["test"] for other in others}
    if card["attribution"] is not None:
        contrasts |= card["attribution"]["contrasts"]
    rates = result["learning_rates"]
    lines = [
        "## Confirmation",
        "",
        *_noise(card),
        "",
        _rules(result["rules"], result["loosened"]),
        "",
        *_table(contrasts),
        "",
        f"Decision: {result['outcome']}; {result['reason']}.",
        "",
        "Learning rates, on promotion seeds: baseline "
        f"{_factor(rates['baseline'])}, candidate {_factor(rates['winner'])}"
        + "".join(f", {one['id']} {_factor(one['learning_rates'])}" for one in others)
        + ".",
        "",
        "| seed | baseline bpb | candidate bpb |",
        "| ---: | ---: | ---: |",
    ]
    rows = zip(card["seeds"], result["baseline_bpb"], result["winner_bpb"], strict=True)
    lines += [f"| {seed} | {_number(a)} | {_number(b)} |" for seed, a, b in rows]
    target = result["to_target"]
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
    return lines


def _noise(card: Mapping[str, Any]) -> list[str]:
    calibration, scattered = card["calibration"], card["confirmation"]["paired_sd_in_sigma"]
    low, high = calibration["sigma_interval"]
    close, independent = card["power"]["twins"], card["power"]["strangers"]
    lines = [
        f"Noise: sigma {calibration['sigma']:.4f} bpb between seeds (95 % interval {low:.4f} to "
        f"{high:.4f}), {calibration['paired_sigma']:.4f} for twins that share a seed. Before the "
        f"runs: a true gain of one sigma wins with probability {close['power_at_one_sigma']:.2f} "
        f"if the gains of pairs scatter by {close['paired_sigma_in_sigma']:.2f} sigma, as twins "
        f"do, and {independent['power_at_one_sigma']:.2f} if by "
        f"{independent['paired_sigma_in_sigma']:.2f}, as strangers at the upper end of that "
        "interval do."
    ]
    if scattered is not None:
        lines.append(f"The gains of these pairs scattered by {scattered:.2f} sigma.")
    return lines


def _rules(rules: Mapping[str, float], loose: Mapping[str, float]) -> str:
    count = rules["confirmations"]
    shared = f", both divided by the {count} confirmations that count" if count > 1 else ""
    words = (
        f"Rules: a win at p <= {rules['first_p']:g} after {rules['first_seeds']} pairs or at p <= "
        f"{rules['p']:g} after {rules['seeds']}{shared}; a mean gain of at least "
        f"{rules['min_gain']:g} sigma; a worst run at most {rules['worst']:g} sigma worse than the "
        "baseline's worst."
    )
    if loose:
        words += f" Looser than the protocol's, so that no win counts: {', '.join(loose)}."
    return words


def _transfer(moved: Mapping[str, Any]) -> list[str]:
    cells = {name: cell_gains(cell) for name, cell in moved["cells"].items()}
    conditions = cells | {
        "mean of these, by seed": pooled(cells),
        "95 % of the compute": cell_gains(moved["cheaper"]),
        "the wider model": cell_gains(moved["wider"]),
    }
    tests = {name: paired_test(gains)._asdict() for name, gains in conditions.items()}
    return ["## Elsewhere", "", *_table(tests)]


def _export(export: Mapping[str, Any]) -> str:
    if not export["passes"]:
        return "Written as a file for optax it DOES NOT AGREE with what was trained."
    return (
        "Written as a file for optax it agrees with what was trained: within "
        f"{export['max_relative_l2']:.1e} relative L2 of every matrix after a step, with "
        f"{export['flips']} signs flipped by rounding."
    )


def _phases(phases: Mapping[str, Any]) -> list[str]:
    lines = [
        "## What the policy does",
        "",
        f"Means over {phases['n']} runs with their 95 % intervals.",
        "",
        "| | first third | middle | last |",
        "| --- | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {name} | " + " | ".join(_with_interval(x, ".3f") for x in thirds) + " |"
        for name, thirds in phases["thirds"].items()
    ]
    shares = [
        f"{name} {_with_interval(share, '.0%')}"
        for name, share in phases["drivers"].items()
        if share["mean"]
    ]
    drivers = ", ".join(shares) or "nothing, it stands still"
    return [*lines, "", f"What drives the gate: {drivers}."]


def _table(tests: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns a table of paired tests by name."""
    lines = [
        "| comparison | mean gain, bpb | 95 % interval | p, one-sided | n |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, test in tests.items():
        mean, interval = "a run failed", ""
        if test["mean"] is not None and math.isfinite(test["mean"]):
            mean, interval = f"{test['mean']:+.4f}", f"{test['low']:+.4f} to {test['high']:+.4f}"
        lines.append(f"| {name} | {mean} | {interval} | {test['p']:.3g} | {test['n']} |")
    return lines


def _with_interval(interval: Mapping[str, float], form: str) -> str:
    return f"{interval['mean']:{form}} ({interval['low']:{form}} to {interval['high']:{form}})"


def _factor(sweep: Mapping[str, Any]) -> str:
    if sweep["chosen"] is None:
        return "fails at all of them"
    edge = f", still at the {sweep['edge']} end of what was tried" if sweep["edge"] else ""
    return f"x{sweep['chosen']:.3g}{edge}"


def _number(value: float | None) -> str:
    return "failed" if value is None else f"{value:.4f}"
