"""Label maps on which the program of BraTS 2026 was run, the tables that it wrote, and a substitute that returns these."""

import sys
from pathlib import Path

import numpy as np

from helpers.evaluation_data import save
from swinunetr_jax.data.phantom.images import phantom_case

RECORDED = Path(__file__).parents[1] / "goldens/brats2026"
SHAPE, SHIFT = (40, 40, 30), (2, 1, 0)
CUBE, TALL = np.diag([-1.0, -1.0, 1.0, 1.0]), np.diag([-1.0, -1.0, 2.0, 1.0])


def label_maps() -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Returns (reference, prediction, affine) for each case. The enhancing tumour has the label 4."""
    nested = boxes(((5, 15), (5, 15), (5, 15), 2), ((8, 12), (8, 12), (8, 12), 1), ((9, 11), (9, 11), (9, 11), 4))
    left, right = ((3, 9), (3, 9), (3, 9), 4), ((25, 31), (25, 31), (3, 9), 4)
    phantom = phantom_case(0, size=(48, 48, 31), seed=3)[1]
    return {
        "equal": (nested, nested, CUBE),
        "both_empty": (boxes(), boxes(), CUBE),
        "prediction_empty": (nested, boxes(), CUBE),
        "reference_empty": (boxes(), nested, CUBE),
        "one_missed": (boxes(left, right), boxes(((4, 9), (3, 9), (3, 9), 4), ((3, 7), (25, 29), (20, 24), 4)), CUBE),
        "elsewhere": (boxes(left), boxes(((20, 26), (3, 9), (3, 9), 4)), CUBE),
        "joined": (boxes(left, ((11, 17), (3, 9), (3, 9), 4)), boxes(((3, 17), (3, 9), (3, 9), 4)), CUBE),
        "tall_voxels": (boxes(left), boxes(((3, 9), (3, 9), (6, 12), 4)), TALL),
        "phantom": (phantom, np.roll(phantom, SHIFT, (0, 1, 2)), CUBE),
    }


def boxes(*box_specs: tuple) -> np.ndarray:
    """Returns a label map with boxes, each given as its bounds along x, y and z and its label."""
    labels = np.zeros(SHAPE, np.uint8)
    for x, y, z, label in box_specs:
        labels[slice(*x), slice(*y), slice(*z)] = label
    return labels


def write(folder: Path) -> tuple[Path, Path]:
    """Writes all cases, and returns the folder of predictions and that of references."""
    for name, (ref, pred, affine) in label_maps().items():
        save(folder / f"ref/{name}.nii.gz", ref, affine)
        save(folder / f"pred/{name}.nii.gz", pred, affine)
    return folder / "pred", folder / "ref"


def stand_in(environment: Path, *, summary: Path = RECORDED / "summary.json", exit_code: int = 0) -> Path:
    """Writes commands that replace those of the program, and returns `environment`.

    They print lines as the program does, copy the files that they are given to `environment/seen`, and return recorded tables.
    """
    start = f"#!{sys.executable}\nimport shutil, sys\noptions = dict(zip(sys.argv[-2::-2], sys.argv[::-2]))\n"
    evaluate = (
        f"for side in ('ref', 'pred'):\n    shutil.copytree(options[f'--{{side}}_path'], {str(environment)!r} + f'/seen/{{side}}')\n"
        "print('[1/9] Evaluating 00000-000.nii.gz...\\nthe last line')\n"
        f"shutil.copy({str(summary)!r}, options['--summary_json'])\nsys.exit({exit_code})\n"
    )
    parse = f"shutil.copy({str(RECORDED / 'table.csv')!r}, options['--output_csv_path'])\n"
    for name, body in (("brats-evaluate", evaluate), ("brats-parse-metrics", parse)):
        path = environment / "bin" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(start + body)
        path.chmod(0o755)
    return environment
