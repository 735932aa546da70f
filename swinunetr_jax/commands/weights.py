"""`swinunetr weights`."""

from dataclasses import asdict, dataclass
from typing import Any

from swinunetr_jax import console, files

NOT_STATED = "not stated by the source"


@dataclass
class Weights:
    """List the published weights of Swin UNETR: address, licence and checksum as far as a source states them, and what they need."""

    json: bool = False
    """Print the table as JSON."""

    def run(self) -> int:
        from swinunetr_jax.packages.published import PUBLISHED
        from swinunetr_jax.presets import PRESETS, Preset

        if self.json:
            presets = {
                name: {"downsample": p.downsample, "task": p.task.to_dict(), "sources": p.sources} for name, p in PRESETS.items()
            }
            console.say(
                files.json_text({"weights": [asdict(p) | {"use": p.use} for p in PUBLISHED], "presets": presets}, indent=1)
            )
            return 0
        for item in PUBLISHED:
            rows = {
                "address": item.address,
                "licence": item.licence or NOT_STATED,
                "checksum": item.checksum or NOT_STATED,
                "source": item.source,
                "use": item.use,
            }
            _say(f"{item.name}: {item.about}", rows)

        def needs(preset: Preset) -> dict[str, Any]:
            task = preset.task
            return {
                "downsample": f"{preset.downsample} (as every network trained with MONAI <= 1.4 and its default)",
                "channels": ", ".join(task.channels) or "one",
                "outputs": f"{task.kind}: {', '.join(f'{output.name} {output.value}' for output in task.outputs)}",
                "orientation": task.orientation or "that of each scan",
                "spacing": "that of each scan"
                if task.spacing is None
                else f"{' '.join(f'{size:g}' for size in task.spacing)} mm",
                "intensity": f"{task.intensity}{'' if task.window is None else f' {task.window[0]:g} … {task.window[1]:g}'}",
                "roi": " ".join(map(str, task.roi or ())),
                "source": "; ".join(preset.sources),
            }

        for preset in PRESETS.values():
            _say(f"--preset {preset.name}", needs(preset))
        return 0


def _say(title: str, rows: dict[str, Any]) -> None:
    console.say("\n".join([title, *(f"  {name:<12}{value}" for name, value in rows.items()), ""]))
