"""The page in docs/ from a run's figures: whatever they are, its text holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.peers_bench.plot import Bar, draw
from benchmarks.peers_bench.ratios import CPU, WALL, Ratio, Record, ratios

PLOTS = {"dense": "peers-dense.svg", "clean-95": "peers-cascade.svg"}
_TITLES = {
    "dense": "Dense: every line is inspected",
    "exact": "The same, peers with the network's whole receptive radius around their slices",
    "latency": "A mask for every 64 lines",
    "clean-90": "Behind the gate, 90 % of the tiles clean",
    "clean-95": "Behind the gate, 95 % of the tiles clean",
    "clean-99": "Behind the gate, 99 % of the tiles clean",
}
_NOTES = {
    "dense": "Peers get the strip as one image and slice it as their documentation has it.",
    "exact": (
        "Slices have a core of 256 px and the receptive radius around it, which is thrown away: then nothing depends on where "
        "slices lie. SAHI keeps polygons, which do not hold every pixel."
    ),
    "latency": (
        "What a line camera with a latency budget wants. The streaming engine carries its state; a tiler computes the halo "
        "above and below every 64 lines again. Peers get each piece as one slice as wide as the strip, the cheapest way there "
        "is."
    ),
}
_GATED = (
    "Peers ask the same gate about every 256 px tile and infer only those that it lets through, with 32 px around them or, "
    "where it says halo, with the receptive radius. Ours looks at what the gate alarms with the margin that its bundle "
    "states."
)


def render(results: dict[str, Any]) -> str:
    """docs/peers.md."""
    one, all_cores = results["runs"].get("one_thread", {}), results["runs"].get("all_cores", {})
    records, together = one.get("records", []), all_cores.get("records", [])
    return "\n".join(
        [
            "# Against other tilers",
            "",
            "Written by `make bench-peers` from the figures of one run; edit `benchmarks/peers_bench/page.py`, not this page.",
            "",
            *_machine(results),
            "",
            *_ratio_table(ratios(records, together)),
            "",
            *_recall(next((run["recall"] for run in results["runs"].values() if run.get("recall")), None)),
            *_compared(results),
            *(line for section in _TITLES for line in _section(section, results, records, together)),
            *_limits(results),
        ]
    )


def plots(results: dict[str, Any]) -> dict[str, str]:
    """SVG files by name."""
    run = results["runs"].get("one_thread") or results["runs"]["all_cores"]
    figure, unit = (CPU, "Mpx per CPU-second, one thread") if "one_thread" in results["runs"] else (WALL, "Mpx per second")
    drawn = {}
    for section, file in PLOTS.items():
        records = [record for record in run["records"] if record["section"] == section]
        if records:
            ordered = sorted(records, key=lambda record: record[figure], reverse=True)
            bars = [Bar(_label(record), record[figure], record["role"]) for record in ordered]
            drawn[file] = draw(_TITLES[section], unit, bars)
    return drawn


def _machine(results: dict[str, Any]) -> Iterator[str]:
    machine, load = results["machine"], results["load"]
    yield (
        f"{results['date']}, {machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB, "
        f"{machine['system']}, Python {machine['python']}. Load before and after: {load[0]:.1f} and {load[1]:.1f}"
        + (
            ": **other work ran beside it; the ratios are rough, the times more so.**"
            if max(load[0], load[1] - machine["cores"]) > 0.5
            else "."
        )
    )
    yield ""
    yield f"    {results['command']}"
    yield ""
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    yield f"Versions: {versions}. Commit {results['commit']}."


def _ratio_table(found: Sequence[Ratio]) -> Iterator[str]:
    yield "## Ratios"
    yield ""
    yield "Speed of ours over theirs, from one run in which all took turns; medians. Mean IoU and defects found: ours / theirs."
    yield ""
    yield "| | CPU time, one thread | wall time, all cores | ours | theirs | mean IoU | defects found |"
    yield "|---|---|---|---|---|---|---|"
    for ratio in found:
        yield (
            f"| {ratio.title} | {_times(ratio.cpu)} | {_times(ratio.wall)} | {ratio.ours['engine']}, {ratio.ours['how']} "
            f"| {ratio.theirs['name']}, {ratio.theirs['engine']}, {ratio.theirs['how']} "
            f"| {_percent(ratio.ours.get('iou'))} / {_percent(ratio.theirs.get('iou'))} "
            f"| {_percent(ratio.ours.get('recall'))} / {_percent(ratio.theirs.get('recall'))} |"
        )


def _recall(recall: Record | None) -> Iterator[str]:
    if recall is None:
        return
    share = recall["found"] / recall["defects"] if recall["defects"] else 1.0
    yield (
        f"**What the cascade finds**, {recall['engine']}, on {recall['strips']} simulated strips with together "
        f"{recall['tiles']} tiles of 256 px, {recall['clean']:.1%} of them clean: {recall['found']} of the {recall['defects']} "
        f"regions that the dense path finds with the same engine ({share:.1%}), {recall['extra']} that it does not; of "
        f"{recall['planted']} planted defects of at least 2 mm2 the dense path finds {recall['planted_dense']}, the cascade "
        f"{recall['planted_cascade']}. Regions on clean steel, which the gate rightly stops, count as lost here."
    )
    yield ""


def _compared(results: dict[str, Any]) -> Iterator[str]:
    yield "## What is compared"
    yield ""
    yield (
        "All have the same weights, read from the same bundles, segment the same strips in the same process, and take turns "
        f"in every round: a warm-up, then rounds of which the median counts ({results['rounds']} here). Thread counts are "
        "equal, and glibc is told to keep freed memory (`MALLOC_MMAP_THRESHOLD_`, `MALLOC_TRIM_THRESHOLD_`), without which "
        "peers, torch above all, are slower. CPU time is that of the whole process. Tilers get the very sessions that the "
        "station runs, with the engine file rewritten at load for its runtime, bound buffers, and our arg-max: what differs "
        "is what they do around it. Given the INT8 file as it stands, ONNX Runtime would be several times slower and OpenVINO "
        "less exact. The conversion of their answers to masks, needed only to hold them against each other, is not timed. "
        "Ours gets frames of 128 lines and hands out masks, the end of the strip, whose last lines must be pushed out of the "
        "streaming engine, included; the whole pipeline, listed apart, goes on to tracked defects and events, which no peer "
        "does."
    )
    yield ""
    yield "| system | version | licence | how it is used | documentation |"
    yield "|---|---|---|---|---|"
    for credit in results["credits"]:
        yield f"| {credit['name']} | {credit['version']} | {credit['licence']} | {_USES[credit['name']]} | <{credit['page']}> |"
    yield ""
    absent = {f"{one['name']} with {one['engine']}: {one['reason']}" for run in results["runs"].values() for one in run["absent"]}
    if absent:
        yield "Not run here: " + "; ".join(sorted(absent)) + "."
        yield ""
    yield (
        "INT8 and FP32 are different things: a ratio between them holds what quantization brings as well as what we do. Rows "
        "against peers with the same engine are without it. Mean IoU, pixels changed and defects found are those of a mask "
        "against one float inference over the whole strip: an INT8 engine cannot reach 100 % there, ours or theirs. A defect "
        "is a connected region of one class of at least 8 px in that reference; it is found if the mask has that class "
        "anywhere in it; extra are such regions of the mask that the reference has nothing of. Planted defects are those of "
        "the simulator from 2 mm2 on; one is found if the mask has anything within 2 mm of it."
    )
    yield ""


_USES = {
    "torch": "the seed systems' loop: eager, one tile of 256 px at a time, 32 px overlap",
    "MONAI": "`sliding_window_inference`, its default overlap of a quarter; behind the gate `PatchInferer` with `filter_fn`",
    "SAHI": "`get_sliced_prediction`, overlap of a fifth, GREEDYNMM over IOS; behind the gate `get_prediction` slice by slice",
    "supervision": "`InferenceSlicer`, its default slices and overlap, NMS, compact masks; behind the gate only alarmed offsets",
    "openvino-model-api": "`SemanticSegmentationTiler`, asynchronous; behind the gate its hook `_filter_tiles`",
}


def _section(section: str, results: dict[str, Any], records: Sequence[Record], together: Sequence[Record]) -> Iterator[str]:
    mine = [record for record in records if record["section"] == section]
    by_key = {record["key"]: record for record in together if record["section"] == section}
    mine += [record for key, record in by_key.items() if key not in {one["key"] for one in mine}]
    if not mine:
        return
    facts = results["strips"][section]
    yield f"## {_TITLES[section]}"
    yield ""
    size = f"`{facts['name']}`, {facts['lines']} lines of {facts['columns']} px"
    known = (
        f", {facts['clean']:.1%} of its tiles clean, {facts['alarmed']:.1%} let through by the gate" if "alarmed" in facts else ""
    )
    yield f"Strip {size}{known}. {_NOTES.get(section, _GATED)}"
    yield ""
    planted = any("planted" in record for record in mine)
    if section in PLOTS:
        yield f"![{_TITLES[section]}](images/{PLOTS[section]})"
        yield ""
    head = "| | engine | how | Mpx/CPU-s, one thread | Mpx/s, all cores | mean IoU | pixels changed | defects found | extra |"
    yield head + (" planted found |" if planted else "")
    yield "|---|---|---|---|---|---|---|---|---|" + ("---|" if planted else "")
    for record in sorted(mine, key=lambda record: -record.get(CPU, 0.0)):
        name = f"**{record['name']}**" if record["role"] == "ours" else record["name"]
        speeds = [
            f"{one[figure]:.2f}" if figure in one else ""
            for one, figure in ((record, CPU), (by_key.get(record["key"], {}), WALL))
        ]
        line = f"| {name} | {record['engine']} | {record['how']} | {' | '.join(speeds)} |"
        if "iou" in record:
            defects = f"{record['found']} of {record['defects']} | {record['extra']}"
            line += f" {_percent(record['iou'])} | {_percent(record['changed'])} | {defects} |"
        else:
            line += " | | | |"
        if planted:
            line += f" {record['planted_found']} of {record['planted']} |" if "planted" in record else " |"
        yield line
    yield ""


def _limits(results: dict[str, Any]) -> Iterator[str]:
    yield "## Limits"
    yield ""
    yield (
        "- The seed systems' own U-Net and the U-Net of base width 16 have random weights here, which do not change a "
        "convolution's time; so nothing is said of their masks. They are timed on a few tiles, spread over the strip, and "
        "counted for all: each tile costs the same."
    )
    yield (
        "- Simulated strips are not steel. How much a gate stops there, and with it the cascade's speed, is a property of "
        "strip and gate; measure your own with `rust-edge bench`."
    )
    yield (
        "- SAHI and supervision are made for detections. That a region's pieces from two slices stay two detections is their "
        "merging; masks are held against each other pixel by pixel, so it does not count against them here."
    )
    yield (
        "- Regions below 8 px are not handed to SAHI and supervision where they run as recommended: specks would cost them "
        "time, and do not count as defects."
    )
    yield (
        "- At the strip's sides ours reflects the strip where tilers let the network pad with zeros; the difference is part "
        "of their error."
    )
    yield (
        "- Wall time with all cores is that of a process whose threads share the machine with nobody; a busy machine makes it "
        "noise. Compare ratios, not times, between machines."
    )
    yield ""


def _label(record: Record) -> str:
    """A bar's name: who, how if it is ours, the engine."""
    if record["role"] == "ours":
        how = record["how"].replace("line-streaming, ", "").replace("the whole pipeline to events", "pipeline")
        return f"rust-edge, {how}, {record['engine']}"
    name = record["name"].partition(" (")[0]
    return f"{name}{', halo' if 'halo' in record['how'] else ''}, {record['engine']}"


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}" if value >= 20 else f"{value:.1f}" if value >= 2 else f"{value:.2f}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.2%}" if share < 0.9995 or share == 1 else f"{share:.3%}"
