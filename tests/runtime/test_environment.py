import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from robust_fin.cli.composition import conf_folder
from robust_fin.errors import ConfigError
from robust_fin.runtime.devices import ALLOCATOR, Hardware, is_risky_pair

PAIR = "expandable_segments:True,max_split_size_mb:128"


def hardware(choice: str, *words: str) -> Hardware:
    """What hardware=choice makes, with keys changed as on the command line."""
    settings = OmegaConf.load(conf_folder() / "hardware" / f"{choice}.yaml")
    found = instantiate(OmegaConf.merge(settings, OmegaConf.from_dotlist(list(words))))
    assert isinstance(found, Hardware)
    return found


@pytest.mark.parametrize(
    ("choice", "wanted"),
    [
        ("cpu", {}),
        ("cuda", {}),
        ("rocm", {}),
        (
            "rocm_dual",
            {
                "HIP_VISIBLE_DEVICES": "0,1",
                "PYTORCH_ROCM_ARCH": "gfx1100",
                "PYTORCH_HIP_ALLOC_CONF": "max_split_size_mb:128",
                "PYTORCH_ALLOC_CONF": "max_split_size_mb:128",
            },
        ),
    ],
)
def test_each_choice_has_its_environment(choice: str, wanted: dict[str, str]) -> None:
    assert hardware(choice).environment() == wanted


def test_one_word_makes_the_allocator_pair_of_the_study() -> None:
    made = hardware("rocm_dual", "expandable_segments=true").environment()
    assert made["PYTORCH_HIP_ALLOC_CONF"] == made["PYTORCH_ALLOC_CONF"] == PAIR


def test_nvidia_devices_have_names_of_their_own() -> None:
    made = hardware("cuda", "visible=[2,0]", "max_split_size_mb=64")
    assert made.environment() == {
        "CUDA_VISIBLE_DEVICES": "2,0",
        "PYTORCH_ALLOC_CONF": "max_split_size_mb:64",
    }


@pytest.mark.parametrize(("text", "risky"), [
    (PAIR, True),
    ("max_split_size_mb:64, expandable_segments:True", True),
    ("expandable_segments:False,max_split_size_mb:128", False),
    ("expandable_segments:True", False),
    ("max_split_size_mb:128,garbage_collection_threshold:0.8", False),
    ("", False),
])  # fmt: skip
def test_the_pair_is_known_in_any_order(text: str, risky: bool) -> None:
    assert is_risky_pair(text) is risky


def test_what_is_in_place_is_not_missing() -> None:
    dual = hardware("rocm_dual")
    wanted = dual.environment()
    assert dual.missing({}) == wanted
    assert dual.missing(wanted) == {}
    assert dual.missing({"HIP_VISIBLE_DEVICES": "0,1"}) == {
        name: value for name, value in wanted.items() if name != "HIP_VISIBLE_DEVICES"
    }


@pytest.mark.parametrize(
    ("name", "value", "key"),
    [
        ("HIP_VISIBLE_DEVICES", "2,3", "visible"),
        ("PYTORCH_ROCM_ARCH", "gfx1030", "arch"),
        *((name, PAIR, "expandable_segments") for name in ALLOCATOR),
    ],
)
def test_a_shell_that_says_otherwise_is_refused(name: str, value: str, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        hardware("rocm_dual").missing({name: value})
    assert f"the shell has {name}={value}" in str(caught.value)
    assert f"set hardware.{key}" in str(caught.value)
    assert hardware("rocm").missing({name: value}) == {}


@pytest.mark.parametrize(
    ("words", "telling"),
    [
        (["cpu", "accelerator=gpu"], "platform=None"),
        (["cuda", "platform=vulkan"], "platform=vulkan"),
        (["cpu", "accelerator=tpu"], "accelerator=tpu"),
        (["cuda", "arch=gfx1100"], "is of AMD devices"),
        (["rocm", "visible=[0,0]"], r"visible=\[0, 0\]"),
        (["rocm", "visible=[]"], r"visible=\[\]"),
        (["rocm", "visible=[-1]"], r"visible=\[-1\]"),
        (["cpu", "visible=[0]"], "needs hardware.accelerator=gpu"),
        (["rocm", "max_split_size_mb=19"], "below 20"),
    ],
)
def test_what_names_no_device_is_refused(words: list[str], telling: str) -> None:
    with pytest.raises(Exception, match=telling) as caught:
        hardware(*words)
    assert isinstance(caught.value.__cause__, ConfigError)


def test_torch_takes_the_settings_and_refuses_a_smaller_split() -> None:
    torch._C._accelerator_setAllocatorSettings(PAIR)
    torch._C._accelerator_setAllocatorSettings("max_split_size_mb:20")
    with pytest.raises(ValueError, match="must be >= 20"):
        torch._C._accelerator_setAllocatorSettings("max_split_size_mb:19")
    torch._C._accelerator_setAllocatorSettings("")
