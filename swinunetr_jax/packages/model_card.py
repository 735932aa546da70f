"""MODEL_CARD.md: what a packed model is, what it was trained on, what it is for, and what nobody has stated about it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from swinunetr_jax import console
from swinunetr_jax.config import SwinUNETRConfig
from swinunetr_jax.task import Task

NOT_STATED = "Not stated by whoever packed this model."
_NO_LICENCE = "Without a licence nobody may use or pass on the weights."
NOT_FOR_DIAGNOSIS = "It is not a medical device, and nobody has shown that its results are fit for the care of patients."
_AUTOMATIC = "Swin UNETR for "  # the beginning of a title that nobody has stated
_SECTIONS = ("Data", "Licence", "Intended use", "Limits")
_IDENTIFIER = re.compile(r"[a-z0-9][a-z0-9.-]*")  # the Hugging Face hub takes such names of licences, such as cc-by-4.0


@dataclass(frozen=True)
class Card:
    """The statements of a user about a model. A part that is None was not stated.

    Attributes:
        name: the name of the model.
        data: the scans that it was trained on, with their source.
        licence: the licence of the weights.
        intended_use: the intended use.
        limits: uses that it is not fit for, and uses that were not tested.
        text: a card in Markdown that is used instead of the parts above.
    """

    name: str | None = None
    data: str | None = None
    licence: str | None = None
    intended_use: str | None = None
    limits: str | None = None
    text: str | None = None

    def missing(self) -> list[str]:
        """Returns the names of the parts that are not stated."""
        if self.text is not None:
            return []
        return [name.replace("_", " ") for name in ("data", "licence", "intended_use", "limits") if not getattr(self, name)]


@dataclass(frozen=True)
class Facts:
    """The facts that the files of a model state: configuration, task, parameters, records, and the SHA-256 of each weight file."""

    config: SwinUNETRConfig
    task: Task
    parameters: int
    weights: Mapping[str, str]
    postprocess: str
    scores: Mapping[str, Any] | None
    version: str


def card_text(card: Card, facts: Facts) -> str:
    """Returns the model card as Markdown: the user's statements, then the facts."""
    if card.text is not None:
        return f"{card.text.rstrip()}\n\n{_facts(facts)}"
    title = card.name or f"{_AUTOMATIC}{', '.join(_names(facts.task)[:3])}"
    return f"{_statements(card, title)}\n\n{_facts(facts)}"


def _statements(card: Card, title: str) -> str:
    """Returns the parts of a card that a user states, below a title."""
    front = ["---", "library_name: swinunetr_jax", "pipeline_tag: image-segmentation", "tags: [medical, swin-unetr, jax]"]
    if card.licence and _IDENTIFIER.fullmatch(card.licence):
        front.append(f"license: {card.licence}")
    contents = (
        card.data or NOT_STATED,
        card.licence or f"{NOT_STATED} {_NO_LICENCE}",
        f"{card.intended_use or NOT_STATED} {NOT_FOR_DIAGNOSIS}",
        card.limits or NOT_STATED,
    )
    text = "\n\n".join(f"## {name}\n\n{content}" for name, content in zip(_SECTIONS, contents))
    return "\n".join([*front, "---", "", f"# {console.literal(title)}", "", text])


def read_card(text: str) -> Card:
    """Returns the statements in the result of `card_text`, for a model that is packed again. The facts are left out."""
    head = text.rpartition("\n## Facts\n")[0]
    sections = dict(re.findall(r"(?ms)^## ([^\n]+)\n\n(.*?)(?=\n\n## |\s*\Z)", head))
    title = re.search(r"(?m)^# (.+)$", head)
    if title is None or tuple(sections) != _SECTIONS:
        return Card(text=head)
    ends = {"Intended use": NOT_FOR_DIAGNOSIS, "Licence": _NO_LICENCE}
    stated = {name: content.strip().removesuffix(ends.get(name, "")).strip() for name, content in sections.items()}
    data, licence, use, limits = (None if stated[name] == NOT_STATED else stated[name] for name in _SECTIONS)
    name = None if title[1].startswith(_AUTOMATIC) else title[1]  # the title is made again from the task
    card = Card(name, data, licence, use, limits)
    return card if _statements(card, title[1]) == head.rstrip() else Card(text=head)


def _facts(facts: Facts) -> str:
    """Returns the section that is computed from the files."""
    task, config = facts.task, facts.config
    labels = ", ".join(f"{console.literal(o.name)} = {o.value}" for o in task.outputs)
    spacing = "that of each scan" if task.spacing is None else "×".join(f"{size:g}" for size in task.spacing) + " mm"
    window = "" if task.window is None else f" {task.window[0]:g} … {task.window[1]:g}"
    rows = {
        "Network": f"Swin UNETR, {config.feature_size} features, patch merging `{config.downsample}`, {facts.parameters:,} parameters",
        "Networks": f"{len(facts.weights)}, whose logits are averaged" if len(facts.weights) > 1 else "1",
        "Channels in order": ", ".join(map(console.literal, task.channels)) or f"{config.in_channels}, unnamed",
        "Outputs": f"{task.kind}: {labels}",
        "Orientation": task.orientation or "that of each scan",
        "Voxel size": spacing,
        "Intensities": f"{task.intensity}{window}",
        "Window": "×".join(map(str, task.roi)) if task.roi else "not stated",
        "Post-processing": facts.postprocess or "none",
        "Scores": _scores(facts.scores),
        "Packed by": f"swinunetr_jax {facts.version}",
    }
    lines = ["## Facts", "", "| | |", "|---|---|", *(f"| {name} | {_cell(value)} |" for name, value in rows.items()), ""]
    lines += [f"- `{name}`: SHA-256 {digest}" for name, digest in facts.weights.items()]
    return "\n".join([*lines, "", "```sh", "swinunetr predict -i SCANS -o RESULTS -m MODEL", "```", ""])


def _scores(scores: Mapping[str, Any] | None) -> str:
    if scores is None:
        return "none were recorded with the network"
    means = ", ".join(f"{console.literal(name)} {value:.4f}" for name, value in scores["mean"].items() if value is not None)
    return f"mean {scores['metric']} of {scores['cases']} cases {scores['on']}: {means}"


def _names(task: Task) -> list[str]:
    return [console.literal(output.name) for output in task.outputs if output.value or task.kind != "classes"]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
