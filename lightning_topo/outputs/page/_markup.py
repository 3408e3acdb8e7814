"""The parts of the page that are text: they need no JavaScript, and every name in them is escaped."""

from collections.abc import Sequence
from html import escape

from lightning_topo.outputs.page._encode import visible
from lightning_topo.outputs.page._facts import Fact, differences, facts, settings, validation
from lightning_topo.outputs.page._model import RunView
from lightning_topo.outputs.page._verdict import besides, finding, tone
from lightning_topo.phases import TopologyEvent


def text(words: str) -> str:
    """Words as HTML that shows them as they are.

    >>> text("<b>x</b>")
    '&lt;b&gt;x&lt;/b&gt;'
    """
    return escape(visible(words))


def head(run: RunView) -> str:
    """The verdict of one run, what to do next, its summary, and how it was trained."""
    trained = (*settings(run), *validation(run))
    rest = besides(run.outcome)
    words = rest.lstrip("; \u2013")  # what joins the two in one sentence is not seen where they stand below each other
    return (
        f'<p class="eyebrow">Topology of training <span class="name">{text(run.label)}</span></p>'
        f'<h1 id="verdict" class="phase-{tone(run.outcome).name.lower()}">{text(finding(run.outcome))}'
        f"<span hidden>{text(rest.removesuffix(words))}</span><small>{text(words)}</small></h1>"
        f"{_decision(run)}"
        f'<dl class="facts" id="summary">{_definitions(facts(run))}</dl>'
        + (
            f'<details id="settings"><summary>How it was trained: {text(_shortly(trained))}</summary>'
            f'<dl class="facts">{_definitions(trained)}</dl></details>'
            if trained
            else ""
        )
    )


def _decision(run: RunView) -> str:
    """What to do next, with the reasons under it."""
    if run.advice is None:
        return ""
    reasons = "".join(f"<li>{text(reason)}</li>" for reason in run.advice.reasons)
    return (
        '<section id="advice" aria-label="What to do next"><p><b>Next:</b> '
        f'<span id="decision">{text(run.advice.decision)}</span></p><ul>{reasons}</ul></section>'
    )


def _definitions(found: Sequence[Fact]) -> str:
    return "".join(f"<div><dt>{text(fact.name)}</dt><dd>{text(fact.value)}</dd></div>" for fact in found)


def _shortly(trained: Sequence[Fact]) -> str:
    """The few settings that are asked for first."""
    known = {fact.name: fact.value for fact in trained}
    names = (("Optimizer", ""), ("Learning rate", "learning rate "), ("Batch size", "batches of "), ("Duration", ""))
    return ", ".join(f"{before}{known[name]}" for name, before in names if name in known)


def comparison(runs: Sequence[RunView]) -> str:
    """The verdicts of several runs, and what differs between them."""
    rows = differences(runs)
    differing = [name for name, _, differs in rows if differs]
    same = [name for name, _, differs in rows if not differs]
    lead = f"They differ in: {'; '.join(differing).lower() or 'nothing that is summed up here'}."
    if same:
        lead += f" The same in all: {'; '.join(same).lower()}."
    verdicts = "".join(
        f'<li class="phase-{tone(run.outcome).name.lower()}"><b class="name">{text(run.label)}</b> '
        f'<span class="verdict">{text(run.verdict)}</span>'
        + (f'<span class="next">Next: {text(run.advice.decision)}</span></li>' if run.advice else "</li>")
        for run in runs
    )
    head = "".join(f'<th scope="col">{text(run.label)}</th>' for run in runs)
    body = "".join(
        f'<tr class="{"differs" if differs else "same"}"><th scope="row">{text(name)}</th>'
        + "".join(f"<td>{text(value)}</td>" for value in values)
        + "</tr>"
        for name, values, differs in rows
    )
    return (
        f'<p class="eyebrow">Topology of training</p><h1 id="verdict">{len(runs)} runs compared</h1>'
        f'<ul id="verdicts">{verdicts}</ul>'
        f'<section class="card" id="differences"><h2>What differs</h2><p class="how">{text(lead)}</p>'
        f'<div class="scroll" tabindex="0" role="region" aria-label="Differences between the runs">'
        f"<table><thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table></div></section>"
    )


def events(run: RunView, *, named: bool) -> str:
    """The table of a run's events, under its name if `named`."""
    if named and run.events:
        inner, n = events(run, named=False), len(run.events)
        title = f"{text(run.label)}: {n:,} event{'' if n == 1 else 's'}"
        return f'<details><summary class="name">{title}</summary>{inner}</details>'
    title = f'<h3 class="name">{text(run.label)}</h3>' if named else ""
    if not run.events:
        return f'{title}<p class="absent">No events: nothing in this run called for one.</p>'
    hidden = run.outcome.n_events - len(run.events)
    more = (
        f'<p class="note">Of {run.outcome.n_events:,} events {len(run.events):,} are shown: the most severe, and of '
        "the rest an even spread. All of them are in events.jsonl.</p>"
        if hidden
        else ""
    )
    rows, said_at = "", dict[str, int]()  # a remedy said once need not be said two hundred times
    for event in run.events:
        said = event.remedy in said_at
        rows += _event_row(event, f"As at step {said_at[event.remedy]:,}." if said else event.remedy)
        said_at.setdefault(event.remedy, event.step)
    return (
        f'{title}<div class="scroll" tabindex="0" role="region" aria-label="Events"><table class="events"><thead><tr>'
        '<th scope="col" class="when">Step</th><th scope="col">Event</th><th scope="col">Where</th>'
        '<th scope="col">What happened</th><th scope="col">What to do</th>'
        f"</tr></thead><tbody>{rows}</tbody></table></div>{more}"
    )


def _event_row(event: TopologyEvent, remedy: str) -> str:
    name = text(event.name.value).replace("_", "_<wbr>")
    where = text(_shortened(event.group)) if event.group else "<i>whole network</i>"
    return (
        f'<tr class="{event.severity.value}"><td data-head="Step"><b>{event.step:,}</b>'
        f' <span class="epoch">epoch {event.epoch:,}</span></td>'
        f'<td data-head="Event"><span class="severity">{event.severity.value}</span> {name}</td>'
        f'<td data-head="Where" class="name" title="{text(event.group)}">{where}</td>'
        f'<td data-head="What happened">{text(event.message)}</td>'
        f'<td data-head="What to do">{text(remedy)}</td></tr>'
    )


def _shortened(name: str, most: int = 80) -> str:
    return name if len(name) <= most else f"{name[: most // 2]}\u2026{name[-most // 2 :]}"


def about(run: RunView, *, named: bool) -> str:
    """What the page holds of the run's record, and what it leaves out, under its name if `named`."""
    lines = [f"Run {run.run_id}: {run.n_measurements:,} measurements, {run.n_captures:,} captured diagrams."]
    if run.outcome.n_groups > len(run.groups):
        lines.append(
            f"Of {run.outcome.n_groups:,} groups the {len(run.groups):,} with the largest critical ratios are shown."
        )
    if run.ratio is not None and run.ratio.merged > 1:
        lines.append(
            f"r: each column is the largest value of up to {run.ratio.merged:,} measured steps, so no peak is lost."
        )
    bands = [detail.band.merged for detail in run.details if detail.band is not None]
    if max(bands, default=1) > 1:
        lines.append(f"Contraction and expansion: each point is the extreme of up to {max(bands):,} measured steps.")
    changes = [detail.change.merged for detail in run.details if detail.change is not None]
    if max(changes, default=1) > 1:
        lines.append(f"Betti numbers and changes: each point is the largest of up to {max(changes):,} captures.")
    thinned = [name for name, table in run.curves.items() if table.merged > 1]
    if thinned:
        lines.append(f"Lines thinned to their least and greatest values: {', '.join(thinned)}.")
    shown = [(len(d.crocker.steps), len(d.slides.steps), d.n_captures) for d in run.details if d.crocker and d.slides]
    columns, pages, captured = max(shown, key=lambda counts: counts[2], default=(0, 0, 0))
    if min(columns, pages) < captured:
        lines.append(
            f"Of {captured:,} captures, CROCKER shows {columns:,} and the diagram slider {pages:,}, evenly spread."
        )
    if any(detail.slides is not None and detail.slides.merged for detail in run.details):
        lines.append("Bars of a diagram that fall on one pixel are one mark.")
    if run.thinned is not None:
        lines.append(
            f"The record had reached its size and was thinned: up to step {run.thinned.until_step:,} one line stands "
            f"for up to {run.thinned.factor:,} measurements, with their largest r and expansion and least contraction, "
            f"and {run.thinned.n_captures:,} captured diagrams were dropped. Events and phases are all kept, "
            "as they were detected while training."
        )
    if len(lines) == 1:
        lines.append("Nothing is thinned out: every measured step and every capture is shown.")
    errors = [detail.landmark_error for detail in run.details if detail.landmark_error is not None]
    if errors:
        n_vacuous = sum(detail.is_vacuous for detail in run.details)
        nothing = f" For {n_vacuous:,} of them this says nothing of loops." if n_vacuous else ""
        lines.append(
            f"Groups whose loops are those of landmarks, not of every neuron: {len(errors):,}. They are known up to "
            f"{max(errors):.2g} of the diameter (2 rho / diameter).{nothing} Connected pieces are exact."
        )
    if run.parent is not None:
        shown = "" if run.history_from is None else ": what it measured up to there is drawn, but not counted"
        lines.append(f"Begun from the checkpoint of run {run.parent.run_id} at step {run.parent.step:,}{shown}.")
    if run.n_abandoned:
        lines.append(f"{run.n_abandoned:,} lines were abandoned by a rewind: the run went back and took other steps.")
    if run.n_unreadable:
        lines.append(f"{run.n_unreadable:,} lines of the record could not be read and are left out.")
    if run.n_lost_captures:
        lines.append(f"{run.n_lost_captures:,} of the captured diagrams could not be read and are left out.")
    title = f'<h3 class="name">{text(run.label)}</h3>' if named else ""
    return title + "<ul>" + "".join(f"<li>{text(line)}</li>" for line in lines) + "</ul>"
