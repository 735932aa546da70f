"""The planner: measured facts, decisions for made-up data sets, and a linear model of memory. Only a long test compiles."""

import math
from dataclasses import replace

import numpy as np
import pytest
from helpers.plans import REST_BYTES, linear_bytes, made_up

from swinunetr_jax import InputError
from swinunetr_jax.training.plan import compile as compile_module
from swinunetr_jax.training.plan import make
from swinunetr_jax.training.plan.compile import is_out_of_memory
from swinunetr_jax.training.plan.decisions import (
    batch_limit,
    decide_spacing,
    decide_window,
    first_crop,
    median_shape,
    notes,
    smaller_crop,
)
from swinunetr_jax.training.plan.devices import find_target
from swinunetr_jax.training.plan.fingerprint import CaseFacts, combine, measure_case
from swinunetr_jax.training.plan.memory import StepBytes, StepMemory, settle
from swinunetr_jax.training.plan.search import GIB, Budget, Fixed, NetworkSize, Step, choose_sizes

# name: (fingerprint, GiB of a device, devices, whether it is a CPU)
MADE_UP = {
    "hippocampus": (made_up((35, 50, 36), cases=200), 16, 1, False),
    "hippocampus, CPU": (made_up((35, 50, 36), cases=200), 8, 1, True),
    "tiny": (made_up((16, 16, 16), cases=4), 8, 1, False),
    "flat": (made_up((320, 320, 18), (0.6, 0.6, 4.0), cases=32, channels=("T2", "ADC")), 16, 1, False),
    "one slice": (made_up((256, 256, 1), (1.0, 1.0, 8.0), cases=50), 8, 1, False),
    "heart": (made_up((320, 320, 115), (1.25, 1.25, 1.37)), 24, 1, False),
    "BraTS": (made_up((140, 175, 140), cases=1251, channels=("FLAIR", "T1ce", "T1", "T2")), 16, 1, False),
    "BraTS, 80 GiB": (made_up((140, 175, 140), cases=1251, channels=("FLAIR", "T1ce", "T1", "T2")), 80, 1, False),
    "BraTS, 8 devices": (made_up((140, 175, 140), cases=1251, channels=("FLAIR", "T1ce", "T1", "T2")), 16, 8, False),
    "liver": (made_up((512, 512, 430), (0.77, 0.77, 1.0), cases=131, channels=("CT",)), 24, 1, False),
    "liver, 8 GiB": (made_up((512, 512, 430), (0.77, 0.77, 1.0), cases=131, channels=("CT",)), 8, 1, False),
    "BTCV": (made_up((512, 512, 148), (0.76, 0.76, 3.0), cases=30, channels=("CT",)), 24, 1, False),
    "lung": (made_up((512, 512, 250), (0.79, 0.79, 1.25), cases=63, channels=("CT",)), 40, 1, False),
    "huge": (made_up((1500, 1500, 1500), (0.05, 0.05, 0.05), cases=5, channels=("CT",)), 80, 4, False),
    "huge, small device": (made_up((1500, 1500, 1500), (0.05, 0.05, 0.05), cases=5, channels=("CT",)), 6, 1, False),
    "eight channels": (made_up((96, 96, 60), (2.0, 2.0, 3.0), cases=40, channels=tuple("abcdefgh")), 12, 1, False),
    "two cases": (made_up((200, 180, 160), cases=2), 16, 1, False),
    "long": (made_up((60, 60, 900), cases=12), 16, 2, False),
    "PET-CT": (made_up((400, 400, 326), (2.0, 2.0, 3.0), cases=1014, channels=("CT", "PET")), 32, 4, False),
    "two devices, CPU": (made_up((128, 128, 64), cases=20), 4, 2, True),
    "mixed spacings": (made_up((256, 256, 30), (0.8, 0.8, 5.0), cases=20, other_spacings=[(0.8, 0.8, 2.0)] * 6), 16, 1, False),
}


def choose(fingerprint, memory, devices, on_cpu, fixed=None, function=linear_bytes):
    spacing, _ = decide_spacing(fingerprint)
    median = median_shape(fingerprint, spacing)
    budget = Budget(0.92 * memory * GIB, devices, on_cpu=on_cpu)
    limit = lambda crop: batch_limit(fingerprint, median, crop)  # noqa: E731
    return choose_sizes(function, budget, median, first_crop(median, spacing), limit, fixed), median, budget, spacing


@pytest.mark.parametrize("name", MADE_UP)
def test_a_plan_fits_and_the_next_step_up_does_not(name):
    fingerprint, *device = MADE_UP[name]
    sizes, median, budget, spacing = choose(fingerprint, *device)
    step = sizes.step
    assert linear_bytes(step) <= budget.limit
    assert all(linear_bytes(refused) > budget.limit for refused in sizes.refused)
    assert all(size % 32 == 0 for size in step.roi) and max(step.roi) >= 64
    assert sizes.batch == step.batch * budget.groups >= 2
    larger = replace(step, batch=step.batch + 1)
    limit = batch_limit(fingerprint, median, step.roi)
    assert linear_bytes(larger) > budget.limit or larger.batch * budget.groups > limit
    crops = [first_crop(median, spacing)]
    while crops[-1] != step.roi:
        crops.append(smaller_crop(crops[-1], median))
    assert len(crops) == 1 or linear_bytes(Step(step.network, crops[-2], budget.least_batch)) > budget.limit
    assert (step.network.feature_size == 12) == budget.on_cpu
    assert all(decision.reason and decision.runner_up for decision in sizes.decisions)


def test_concessions_come_in_order():
    networks = [choose(MADE_UP["BraTS"][0], memory, 1, False)[0].step.network for memory in (80, 8, 5, 3)]
    assert networks == [
        NetworkSize(),
        NetworkSize(dtype="bfloat16"),
        NetworkSize(dtype="bfloat16", use_checkpoint=True),
        NetworkSize(dtype="bfloat16", use_checkpoint=True, feature_size=24),
    ]


def test_values_that_the_user_chose_are_kept():
    fixed = Fixed(roi=(96, 96, 96), batch=3, feature_size=36, use_v2=False)
    sizes, *_ = choose(MADE_UP["liver"][0], 40, 1, False, fixed)
    assert sizes.step == Step(NetworkSize(36, use_v2=False), (96, 96, 96), 3) and sizes.batch == 3
    assert {d.name: d.reason[:17] for d in sizes.decisions if d.reason.startswith("given")}.keys() == {
        "network.feature_size",
        "network.use_v2",
        "roi",
        "batch",
    }


def test_a_limit_that_no_step_fits_into_is_refused_with_one_sentence():
    with pytest.raises(InputError, match=r"no training step fits into 0\.092 GiB: a crop of .*×.* needs"):
        choose(MADE_UP["liver"][0], 0.1, 1, False)


def test_spacings():
    even = made_up((10, 10, 10), (1.0, 1.0, 1.0), cases=5, other_spacings=[(2.0, 1.0, 1.0)] * 2)
    assert decide_spacing(even)[0] == (1.0, 1.0, 1.0)
    assert decide_spacing(even, (3.0, 3.0, 3.0))[0] == (3.0, 3.0, 3.0)
    coarse = MADE_UP["mixed spacings"][0]  # 2 mm is the 10th percentile, since 6 of 20 scans have 2 mm slices
    assert decide_spacing(coarse)[0] == (0.8, 0.8, 2.0)
    assert decide_spacing(made_up((100, 100, 60), (1.0, 1.0, 4.0), cases=4, other_spacings=[(1.0, 1.0, 2.0)]))[0] == (1, 1, 4)


@pytest.mark.parametrize(
    ("channels", "window"), [(("CT",), (-100.0, 200.0)), (("CT", "PET"), None), (("T1",), None), (("ct",), (-100.0, 200.0))]
)
def test_intensities(channels, window):
    assert decide_window(made_up((9, 9, 9), channels=channels))[0] == window


@pytest.mark.parametrize(
    ("median", "spacing", "crop"),
    [
        ((35, 50, 36), (1, 1, 1), (32, 64, 32)),
        ((41, 30, 20), (1, 1, 1), (64, 32, 32)),
        ((20, 30, 20), (1, 1, 1), (32, 64, 32)),
        ((140, 175, 140), (1, 1, 1), (160, 192, 160)),
        ((1500, 1500, 1500), (1, 1, 1), (256, 256, 256)),
        ((512, 512, 148), (0.75, 0.75, 3), (416, 416, 128)),
    ],
)
def test_first_crops(median, spacing, crop):
    assert first_crop(np.array(median), spacing) == crop


def test_smaller_crops_end_at_the_smallest_one():
    median, crop, seen = np.array((140, 175, 140)), (160, 192, 160), []
    while (crop := smaller_crop(crop, median)) is not None:
        seen.append(crop)
    assert seen[0] == (128, 192, 160) and seen[-1] == (32, 64, 32) and len(set(seen)) == len(seen)


def test_notes_say_what_is_unusual():
    fingerprint = made_up((320, 320, 18), (0.6, 0.6, 4.0))
    messages = notes(fingerprint, (0.6, 0.6, 4.0), (64, 64, 32))
    assert "6.7 times as long" in messages[0] and "18 voxels along axis 2, which is padded to 32" in messages[0]
    assert messages[1].startswith("20 of 20 scans are smaller than the crop of 64×64×32")
    assert not notes(made_up((64, 64, 64)), (1, 1, 1), (64, 64, 64))
    (tiny,) = notes(made_up((64, 64, 64)), (1, 1, 2), (64, 64, 32))  # 10 voxels become 5
    assert tiny.startswith("label 1 has 5 voxels in the median case that has it") and "less than the 8 voxels" in tiny


def test_the_facts_of_a_case():
    label = np.zeros((8, 6, 4), np.uint8)
    label[1, 1, 1] = label[2, 2, 2] = 1  # they share a corner
    label[5, 1, 1] = label[7, 1, 1] = 3
    image = np.zeros((8, 6, 4, 2), np.float32)
    image[1:, 1:3, 1:] = 5
    image[label == 3, 0] = 9
    measured = measure_case("a", image, label, (1.0, 2.00000049, 3.0), number=0, cases=1)
    facts = measured.facts
    assert facts == CaseFacts(
        "a", (8, 6, 4), (1.0, 2.0, 3.0), ((1, 8), (1, 3), (1, 4)), round(7 * 2 * 3 / 192, 6), {1: 2, 3: 2}, {1: 1, 3: 2}
    )
    fingerprint = combine([measured], ("0", "1"), "RAS")
    assert (fingerprint.channels[0].mean, fingerprint.channels[0].deviation, fingerprint.channels[1].deviation) == (7.0, 2.0, 0.0)
    assert fingerprint.channels[0].samples == 4


def test_a_linear_model_of_compiled_steps_leads_to_a_plan():
    """The compiled memory differs from the linear model by up to 3 %, but the plan is right and few steps are compiled."""
    for name in MADE_UP:
        fingerprint, memory, devices, on_cpu = MADE_UP[name]
        compiled: list[Step] = []

        def compile_step(step: Step, compiled: list[Step] = compiled) -> StepBytes:
            compiled.append(step)
            held = REST_BYTES * (step.network.feature_size / 12) ** 2
            return StepBytes(held, linear_bytes(step) * (1 + 0.03 * math.sin(sum(step.roi) + step.batch)) - held)

        model = StepMemory(compile_step, ((64, 64, 64), 2))
        limit = 0.92 * memory * GIB
        sizes = settle(
            lambda memory_of: choose(fingerprint, memory, devices, on_cpu, function=memory_of)[0],  # noqa: B023
            model,
            limit,
        )
        assert model.compiled[sizes.step].total <= limit
        assert all(linear_bytes(refused) > 0.97 * limit for refused in sizes.refused)
        assert len(compiled) == len(set(compiled)) <= 16, name  # four networks are tried for the liver


# ---- the file and the command


@pytest.mark.long
@pytest.mark.parametrize(
    ("shape", "spacing", "channels", "memory"),
    [
        ((35, 50, 36), (1.0, 1.0, 1.0), 1, 2.0),
        ((140, 175, 140), (1.0, 1.0, 1.0), 4, 3.0),
        ((320, 320, 18), (0.6, 0.6, 4.0), 2, 2.0),
        ((96, 96, 60), (2.0, 2.0, 3.0), 8, 2.0),
    ],
)
def test_a_compiled_plan_fits_and_the_next_step_up_does_not(shape, spacing, channels, memory, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fingerprint = made_up(shape, spacing, cases=40, channels=tuple("abcdefgh"[:channels]))
    target = find_target("cpu", memory)
    from swinunetr_jax import Task
    from swinunetr_jax.training.recipes.msd import RECIPE

    training = make._training(RECIPE, RECIPE.network, Task.classes(3), channels)
    compiler = compile_module.StepCompiler(training, target, channels, 1, keep=True, say=print)
    model = StepMemory(compiler, ((64, 64, 32), 2))
    sizes = settle(lambda memory_of: choose(fingerprint, memory, 1, True, function=memory_of)[0], model, target.limit)
    assert model.compiled[sizes.step].total <= target.limit
    larger = replace(sizes.step, batch=sizes.step.batch + 1)
    for step in (*sizes.refused, *([larger] if larger.batch <= batch_limit(fingerprint, np.array(shape), larger.roi) else [])):
        assert model.compile(step).total > target.limit


def test_only_a_lack_of_memory_makes_the_planner_try_a_smaller_step():
    """Another failure must end the plan, because a smaller step would not mend it."""
    for text in (
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm.",
        "RESOURCE_EXHAUSTED: Failed to allocate request for 2.00GiB",
        "Out of memory allocating 17179869184 bytes.",
        "std::bad_alloc",
    ):
        assert is_out_of_memory(RuntimeError(text)), text
    for text in ("CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access was encountered", "INTERNAL: memory_analysis failed"):
        assert not is_out_of_memory(RuntimeError(text)), text
