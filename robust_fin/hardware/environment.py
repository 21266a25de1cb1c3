"""Which devices a run uses, and the environment variables that say so to torch.

The variables are in a process's environment when it starts: torch reads a part of them while it is
imported, and HIP when it is first touched.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from robust_fin.errors import ConfigError

CPU, GPU, CUDA, ROCM = "cpu", "gpu", "cuda", "rocm"
VISIBLE = {CUDA: "CUDA_VISIBLE_DEVICES", ROCM: "HIP_VISIBLE_DEVICES"}
ARCH = "PYTORCH_ROCM_ARCH"
# in the order in which torch looks for them; the last is the name that torch itself recommends
ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
LEAST_SPLIT_MB = 20  # torch refuses less


@dataclass(frozen=True, slots=True)
class Hardware:
    """What conf/hardware names.

    Attributes:
        accelerator: `cpu` or `gpu`, as Lightning calls it.
        platform: `cuda` or `rocm`; None on the CPU.
        visible: numbers of the devices that the run sees; None leaves it as the shell has it.
        arch: of AMD devices, such as gfx1100; None leaves it as the shell has it.
        expandable_segments: of torch's allocator; None leaves torch's default.
        max_split_size_mb: of torch's allocator, in MB; None leaves torch's default.
        check: refuse to start where the devices are not there. False sets the environment alone, to
            try a launch on a machine without them.

    Raises:
        ConfigError: settings that contradict each other.
    """

    accelerator: str
    platform: str | None
    visible: Sequence[int] | None
    arch: str | None
    expandable_segments: bool | None
    max_split_size_mb: int | None
    check: bool

    def __post_init__(self) -> None:
        """Refuse what names no device."""
        wanted = {CPU: (None,), GPU: (CUDA, ROCM)}.get(self.accelerator, ())
        if self.platform not in wanted:
            raise ConfigError(
                f"hardware.accelerator={self.accelerator} with hardware.platform={self.platform}: "
                "the accelerator is cpu without a platform, or gpu with cuda or rocm"
            )
        if self.arch is not None and self.platform != ROCM:
            raise ConfigError(f"hardware.arch={self.arch} is of AMD devices; set it with rocm")
        if self.visible is not None and not self._names_devices(self.visible):
            raise ConfigError(
                f"hardware.visible={list(self.visible)} must name at least one device, none twice "
                "and none below 0, and needs hardware.accelerator=gpu"
            )
        split = self.max_split_size_mb
        if split is not None and split < LEAST_SPLIT_MB:
            raise ConfigError(
                f"hardware.max_split_size_mb={split} is below {LEAST_SPLIT_MB}, the least of torch"
            )

    def environment(self) -> dict[str, str]:
        """Variables that every process of the run has."""
        if self.platform is None:
            return {}
        found = {}
        if self.visible is not None:
            found[VISIBLE[self.platform]] = ",".join(map(str, self.visible))
        if self.arch is not None:
            found[ARCH] = self.arch
        if self.allocator:
            names = ALLOCATOR[1:] if self.platform == ROCM else ALLOCATOR[2:]
            found |= dict.fromkeys(names, self.allocator)
        return found

    @property
    def allocator(self) -> str:
        """The allocator's settings as torch reads them; empty where all are torch's own."""
        parts = {
            "expandable_segments": self.expandable_segments,
            "max_split_size_mb": self.max_split_size_mb,
        }
        return ",".join(f"{name}:{value}" for name, value in parts.items() if value is not None)

    def missing(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Variables that a process with `environ` would have to be started anew for.

        Raises:
            ConfigError: the shell says something else.
        """
        wanted = self.environment()
        spoken = dict(wanted)
        if self.allocator and self.platform is not None:  # any of the names would win or confuse
            spoken |= dict.fromkeys(ALLOCATOR, self.allocator)
        for name, value in spoken.items():
            if environ.get(name, value) != value:
                raise ConfigError(
                    f"the shell has {name}={environ[name]}, and the settings of hardware ask for "
                    f"{value}. Unset it, or set {_key_of(name)} to what the shell has, or to null"
                )
        return {name: value for name, value in wanted.items() if name not in environ}

    def _names_devices(self, visible: Sequence[int]) -> bool:
        distinct = len(set(visible)) == len(visible) > 0
        return self.accelerator == GPU and distinct and min(visible) >= 0


def is_risky_pair(allocator: str) -> bool:
    """Whether an allocator setting joins expandable segments with a largest split size.

    Together they are reported to make live memory read back as zeros on some ROCm releases.

    Source: github.com/ROCm/legacy-rocm-build/issues/6603 (gfx1201, gfx1100; ROCm 7.14).
    """
    given = dict(part.partition(":")[::2] for part in allocator.replace(" ", "").split(","))
    return given.get("expandable_segments") == "True" and "max_split_size_mb" in given


def _key_of(variable: str) -> str:
    if variable in ALLOCATOR:
        return "hardware.expandable_segments and hardware.max_split_size_mb"
    return "hardware.arch" if variable == ARCH else "hardware.visible"
