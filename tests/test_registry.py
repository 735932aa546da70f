"""Networks by name: of this process, and of an installed package, with which the whole command line works."""

import json
import sys
from dataclasses import dataclass, replace

import pytest
from flax import nnx
from helpers.network_package import MODULE, write_network_package
from helpers.prediction import run
from helpers.refusals import refused

from swinunetr_jax import InputError, SwinUNETRConfig, open_checkpoint, registry, save_checkpoint
from swinunetr_jax.training import Network, Recipe, loop
from swinunetr_jax.training import command as train_command
from swinunetr_jax.weights.checkpoint import DESCRIPTION
from swinunetr_jax.weights.params import make_network, read_config

# fmt: off
SMALL = (
    "--batch", "2", "--folds", "2", "--roi", "32", "32", "32", "--phantom.cases", "4", "--phantom.size", "48", "48", "32", "--steps", "2",
    "--validation.every", "4", "--validation.overlap", "0",
)
# fmt: on


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """Removes what a test registers."""
    monkeypatch.setattr(registry, "_registered", {})


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Makes a package with the networks `plain` and `tiny` importable, and returns its folder."""
    folder = write_network_package(tmp_path / "site")
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    sys.modules.pop("tiny_networks", None)


def unet(in_channels, out_channels, *, rngs):
    return nnx.Linear(in_channels, out_channels, rngs=rngs)


def test_a_registered_network_is_found_by_its_name():
    network = registry.register("my_unet", unet)
    assert registry.find("my_unet") is network and registry.names() == ("swin_unetr", "my_unet")
    config = network.config(2, 3)
    assert config.to_dict() == {"network": "my_unet", "in_channels": 2, "out_channels": 3}
    assert read_config(config.to_dict()) == config and config.make(nnx.Rngs(0)).kernel.shape == (2, 3)
    assert not registry.is_installed("my_unet")
    registry.register("my_unet", unet)  # as if its file were executed again
    with refused("my_unet is already registered for", "test_registry.unet"):
        registry.register("my_unet", lambda *_, **__: unet)
    for name in ("", "a b", "swin_unetr", "a/b", "é", 3):
        with refused("a network cannot have the name"):
            registry.register(name, unet)
    with refused("no configuration of its own", "width"):
        network.config(2, 3, width=4)


def test_a_checkpoint_stores_the_name_under_which_a_network_is_registered():
    renamed = registry.register("second_name", registry.register("my_unet", unet))
    assert renamed.name == "second_name" and renamed.config(2, 3).to_dict()["network"] == "second_name"
    assert read_config(renamed.config(2, 3).to_dict()) == renamed.config(2, 3)


def test_a_name_that_is_not_registered_is_refused_and_the_others_are_listed(package):
    registry.register("my_unet", unet)
    with refused("the network is other", "registered: swin_unetr, my_unet, plain, tiny", "--recipe FILE", "registry.register"):
        registry.find("other")
    with refused("the network is my_unet, but the recipe creates plain"):
        read_config({"network": "my_unet", "in_channels": 1, "out_channels": 1}, registry.find("plain"))


def test_only_the_package_of_a_name_is_imported(tmp_path, monkeypatch):
    """A name in a checkpoint is compared with the names that packages state in their metadata. It is never imported itself."""
    for number in (1, 2):
        text = f"import pathlib\npathlib.Path({str(tmp_path)!r}, 'imported{number}').touch()\n" + MODULE
        write_network_package(tmp_path / f"site{number}", f"networks-{number}", f"networks_{number}", text)
    (tmp_path / "site2/networks_2-1.0.dist-info/entry_points.txt").write_text(
        "[swinunetr_jax.networks]\nsecond = networks_2:Plain\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path / "site1"))
    monkeypatch.syspath_prepend(str(tmp_path / "site2"))
    for name in ("networks_1", "networks_1:Plain", "os", "os:system", "pathlib", "../x", "tiny\x1b", "swin_unetr"):
        with pytest.raises(InputError, match="not registered here"):
            read_config({"network": name, "in_channels": 1, "out_channels": 2})
    for name in (None, 3, ["plain"], {}):
        with refused("must be the name of a network"):
            read_config({"network": name, "in_channels": 1, "out_channels": 2})
    assert registry.names() == ("swin_unetr", "plain", "second", "tiny") and not list(tmp_path.glob("imported*"))
    assert read_config({"network": "second", "in_channels": 1, "out_channels": 2}).name == "second"
    assert [path.name for path in tmp_path.glob("imported*")] == ["imported2"]


def test_two_packages_with_one_name_and_a_package_that_fails_are_refused(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(write_network_package(tmp_path / "one", "first", "first_one")))
    monkeypatch.syspath_prepend(str(write_network_package(tmp_path / "two", "second", "second_one", "import no_such_module")))
    with refused("several installed packages have a network tiny (first, second)"):
        registry.find("tiny")
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(tmp_path / "one")])
    with refused("the network tiny of the package second cannot be imported", "no_such_module", "repair the package"):
        registry.find("tiny")


def test_a_network_has_a_configuration_of_its_own(package):
    tiny = registry.find("tiny")
    config = tiny.config(2, 3, width=8)
    assert config.to_dict() == {"network": "tiny", "in_channels": 2, "out_channels": 3, "width": 8, "drop_rate": 0.0}
    assert read_config(config.to_dict()) == config and hash(read_config(config.to_dict())) == hash(config)
    assert make_network(config, nnx.Rngs(0)).hidden.kernel.shape == (2, 8)
    with refused("multiples of 16"):
        config.check_spatial((32, 32, 24))
    with refused("the configuration TinyConfig of the network tiny cannot be used", "depth"):
        tiny.config(2, 3, depth=4)
    with refused("integers above 0"):
        tiny.config(0, 3)


@dataclass(frozen=True)
class Forgetful:
    """A configuration whose field `width` is lost when it is stored."""

    in_channels: int
    out_channels: int
    width: int = 4

    def to_dict(self):
        return {"in_channels": self.in_channels, "out_channels": self.out_channels}

    @classmethod
    def from_dict(cls, values):
        return cls(**values)

    def check_spatial(self, shape):
        pass


class NotHashable(Forgetful):
    __hash__ = None


def test_a_configuration_that_cannot_be_stored_is_refused():
    network = registry.register("forgetful", unet, Forgetful)
    assert network.config(1, 2).own == Forgetful(1, 2)
    with refused("`from_dict` does not return an equal configuration"):
        network.config(1, 2, width=8)
    with refused("NotHashable", "unhashable type"):
        registry.register("not_hashable", unet, NotHashable).config(1, 2)


def test_the_name_of_a_network_is_an_option_of_a_recipe(package):
    recipe = Recipe(kind="phantom", network="tiny")
    assert recipe.network == Network(name="tiny") and recipe.functions() == {}
    recipe = replace(recipe, network=Network(name="tiny", settings='{"width": 8}'))
    recipe.check()
    assert recipe.network_config(4, 3).to_dict()["width"] == 8
    assert Recipe(kind="phantom").network_config(4, 3) == SwinUNETRConfig(in_channels=4, out_channels=3, feature_size=48)
    for settings in ("{", "[]", '{"in_channels": 3}', "null"):
        with refused("`network.settings` must be a JSON object"):
            replace(recipe, network=Network(name="tiny", settings=settings)).check()
    with refused("multiples of 16"):
        replace(recipe, roi=(32, 32, 24)).check()
    with refused("name it with --network.name"):
        Recipe(kind="phantom", network=Network(settings='{"width": 8}')).check()
    with refused("the recipe gives the network tiny"):
        replace(recipe, deep_supervision=True).check()
    with refused("--network.feature-size is an option of a Swin UNETR and has no effect on the network tiny"):
        Recipe(kind="phantom").with_options(Recipe(kind="phantom", network=Network(name="tiny", feature_size=24)).options())


def test_a_network_of_an_installed_package_needs_no_recipe(package, tmp_path, monkeypatch, capsys):
    """Trains, resumes, predicts, scores and describes it with the command line alone."""
    monkeypatch.setattr(loop, "_draw", lambda *_: None)
    monkeypatch.setattr(train_command, "keep_programs", lambda *_: None)
    data, out = tmp_path / "data", tmp_path / "run"
    shared = ("--data", data, "--cache", tmp_path / "cache", *SMALL)
    chosen = ("--network.name", "tiny", "--network.settings", '{"width": 8}')
    assert run("train", "phantom", *shared, "--out", out, *chosen, "--network.feature-size", "24") == 2
    assert "--network.feature-size is an option of a Swin UNETR" in capsys.readouterr().err
    assert run("train", "phantom", *shared, "--out", out, *chosen) == 0
    assert f"swinunetr predict -i {data} -o {out}/predictions -m {out} --crop" in (printed := capsys.readouterr().out)
    assert "--recipe" not in printed
    stored = json.loads((out / "last" / DESCRIPTION).read_text())["config"]
    assert stored == {"network": "tiny", "in_channels": 4, "out_channels": 3, "width": 8, "drop_rate": 0.0}
    assert run("train", "--resume", out, "--steps", "3") == 0
    assert run("predict", "-i", data, "-o", tmp_path / "labels", "-m", out) == 0
    assert len(list((tmp_path / "labels").glob("*.nii.gz"))) == 4
    assert run("evaluate", tmp_path / "labels", data) == 0
    capsys.readouterr()
    assert run("info", out) == 0
    assert "tiny, 67 parameters" in (printed := capsys.readouterr().out) and "width                8" in printed
    assert run("convert", out, tmp_path / "net.pt") == 2
    assert "holds the network tiny, and convert is for a Swin UNETR" in capsys.readouterr().err
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(package)])
    for command in (("predict", "-i", data, "-o", tmp_path / "none", "-m", out), ("info", out), ("train", "--resume", out)):
        assert run(*command) == 2
        assert "the network is tiny, which is not a Swin UNETR and not registered" in (printed := capsys.readouterr().err)
        assert printed.count("\n") == 1


def test_a_network_is_saved_and_opened_in_python(package, tmp_path):
    tiny = registry.find("tiny")
    config = tiny.config(2, 3, width=8)
    save_checkpoint(tmp_path / "net", config.make(nnx.Rngs(0)), config=config)
    opened = open_checkpoint(tmp_path / "net")
    assert opened.config == config and opened.model().hidden.kernel.shape == (2, 8)
    assert open_checkpoint(tmp_path / "net", network=tiny).config == config
    with refused("holds the network tiny", "drop_rate", "leave them out"):
        open_checkpoint(tmp_path / "net", drop_rate=0.5)
    with refused("the format monai is for a Swin UNETR"):
        save_checkpoint(tmp_path / "net.pt", opened.model(), config=config)
    with refused("does not have its configuration as the attribute `config`"):
        save_checkpoint(tmp_path / "other", opened.model())


@pytest.mark.long
def test_a_run_starts_from_the_checkpoint_of_a_registered_network(package, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loop, "_draw", lambda *_: None)
    monkeypatch.setattr(train_command, "keep_programs", lambda *_: None)
    config = registry.find("tiny").config(4, 3, width=8)
    save_checkpoint(tmp_path / "net", config.make(nnx.Rngs(5)), config=config)
    recipe = tmp_path / "mine.py"
    recipe.write_text(
        "from dataclasses import replace\nfrom swinunetr_jax.training.recipes.phantom import RECIPE as PHANTOM\n"
        "RECIPE = replace(PHANTOM, network='tiny')\n"
    )
    shared = ("--data", tmp_path / "data", "--cache", tmp_path / "cache", "--out", tmp_path / "run", *SMALL)
    assert run("train", recipe, *shared, "--init.checkpoint", tmp_path / "net") == 0
    assert f"the network is that of {tmp_path / 'net'}, tiny" in capsys.readouterr().out
    assert open_checkpoint(tmp_path / "run").config == config
    assert run("train", "--resume", tmp_path / "run", "--steps", "3") == 0
