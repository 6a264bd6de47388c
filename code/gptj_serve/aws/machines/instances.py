"""The instance types of SageMaker hosting that this service knows: GPU, memory, host image, price.

GPUs' memory is what CUDA reports, which is less than the data sheet's. Bandwidth is the data sheet's. Prices
are list prices in us-east-1, `PRICES_AS_OF`; None where no source was good enough, as for the p4 and p5
families, whose prices have been cut since they were last published widely. Look prices up before relying on
them: https://aws.amazon.com/sagemaker/ai/pricing/
"""

import difflib
import re
from dataclasses import dataclass
from functools import cache

PRICES_AS_OF = "2026-11"

DRIVER_580 = "al2023-ami-sagemaker-inference-gpu-4-1"
"""Host image with driver 580, which is newer than the image's CUDA 12.6 needs (560)."""

DRIVER_550 = "al2-ami-sagemaker-inference-gpu-3-1"
"""Host image with driver 550, for GPUs that the newer host image does not support. The image's CUDA
compatibility libraries make up for the older driver."""

DRIVER_535 = "al2-ami-sagemaker-inference-gpu-2-1"
"""Host image with driver 535, the oldest."""

_AMIS = (DRIVER_580, DRIVER_550, DRIVER_535)


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU model.

    Attributes:
        name: NVIDIA's name of it.
        memory_gib: The total memory that CUDA reports, in GiB; the least that was seen.
        bandwidth_gb_s: Memory bandwidth, GB/s.
        capability: Compute capability, for example "7.5".
    """

    name: str
    memory_gib: float
    bandwidth_gb_s: int
    capability: str


T4 = Gpu("T4", 14.56, 320, "7.5")
V100 = Gpu("V100 16GB", 15.77, 900, "7.0")
A10G = Gpu("A10G", 22.04, 600, "8.6")
L4 = Gpu("L4", 22.03, 300, "8.9")
L40S = Gpu("L40S", 44.39, 864, "8.9")
A100_40 = Gpu("A100 40GB", 39.38, 1555, "8.0")
A100_80 = Gpu("A100 80GB", 79.14, 2039, "8.0")
H100 = Gpu("H100 80GB", 79.11, 3350, "9.0")
H200 = Gpu("H200 141GB", 139.72, 4800, "9.0")


@dataclass(frozen=True, slots=True)
class InstanceType:
    """An instance type.

    Attributes:
        name: For example "ml.g4dn.2xlarge".
        gpu: The GPU; None for a CPU type.
        num_gpus: How many GPUs it has; the service uses one.
        ami: Value of ``InferenceAmiVersion``; None for CPU types.
        takes_volume: Whether ``VolumeSizeInGB`` may be given; families with disks of their own refuse it.
        price_usd_hour: List price; None if it is not known.
        warning: What the user should know before using it.
    """

    name: str
    gpu: Gpu | None
    num_gpus: int
    ami: str | None
    takes_volume: bool
    price_usd_hour: float | None = None
    warning: str | None = None

    @property
    def family(self) -> str:
        """The family, for example "g4dn"."""
        return self.name.split(".")[1]

    def describe(self) -> str:
        """The type in words, for example "1 x T4, 14.6 GiB, $0.94 an hour"."""
        what = f"{self.num_gpus} x {self.gpu.name}, {self.gpu.memory_gib:.1f} GiB" if self.gpu else "CPU"
        price = "" if self.price_usd_hour is None else f", ${self.price_usd_hour:g} an hour"
        return what + price


@dataclass(frozen=True, slots=True)
class _Family:
    gpu: Gpu
    sizes: dict[str, tuple[int, float | None]]
    """By size: the number of GPUs and the list price an hour."""
    ami: str = DRIVER_580
    takes_volume: bool = False
    warning: str | None = None


_FAMILIES = {
    "g4dn": _Family(
        T4,
        {
            "xlarge": (1, 0.7364),
            "2xlarge": (1, 0.94),
            "4xlarge": (1, 1.505),
            "8xlarge": (1, 2.72),
            "16xlarge": (1, 5.44),
            "12xlarge": (4, 4.89),
        },
    ),
    "g5": _Family(
        A10G,
        {
            "xlarge": (1, 1.408),
            "2xlarge": (1, 1.515),
            "4xlarge": (1, 2.03),
            "8xlarge": (1, 3.06),
            "16xlarge": (1, 5.12),
            "12xlarge": (4, 7.09),
            "24xlarge": (4, 10.18),
            "48xlarge": (8, 20.36),
        },
    ),
    "g6": _Family(
        L4,
        {
            "xlarge": (1, None),
            "2xlarge": (1, 1.222),
            "4xlarge": (1, 1.654),
            "8xlarge": (1, None),
            "16xlarge": (1, 4.246),
            "12xlarge": (4, 5.752),
            "24xlarge": (4, 8.344),
            "48xlarge": (8, 16.688),
        },
    ),
    "g6e": _Family(
        L40S,
        {
            "xlarge": (1, None),
            "2xlarge": (1, 2.8),
            "4xlarge": (1, None),
            "8xlarge": (1, None),
            "16xlarge": (1, None),
            "12xlarge": (4, 13.12),
            "24xlarge": (4, None),
            "48xlarge": (8, None),
        },
    ),
    "p3": _Family(
        V100,
        {"2xlarge": (1, 3.825), "8xlarge": (4, 14.688), "16xlarge": (8, 28.152)},
        ami=DRIVER_550,
        takes_volume=True,
        warning="AWS is retiring the p3 family: it may be refused for new accounts and regions, and end; "
        "ml.g5.2xlarge or ml.g6e.xlarge are its successors for this model",
    ),
    "p4d": _Family(A100_40, {"24xlarge": (8, None)}),
    "p4de": _Family(A100_80, {"24xlarge": (8, None)}),
    "p5": _Family(H100, {"4xlarge": (1, None), "48xlarge": (8, None)}),
    "p5e": _Family(H200, {"48xlarge": (8, None)}),
    "p5en": _Family(H200, {"48xlarge": (8, None)}),
}

_CPU_PRICES = {"ml.m5.large": 0.115, "ml.m5.xlarge": 0.23, "ml.m5.2xlarge": 0.461}

_X86_CPUS = re.compile(r"t2|[mcr]\d+(?!g)\w*")

_UNSUPPORTED = {
    r"p2": "its K80 has no kernels in PyTorch any more",
    r"(g7|g7e|p6.*)": "the image's CUDA 12.6 has no kernels for its Blackwell GPU",
    r"(inf|trn)\d\w*": "the service needs an NVIDIA GPU",
    r"dl1": "the service needs an NVIDIA GPU",
    r"\w+g(d|n)?": "the image is for x86, not for ARM",
}


def all_gpu_instances() -> tuple[InstanceType, ...]:
    """Every GPU instance type by family; in each family, sizes with one GPU come first."""
    return tuple(
        InstanceType(f"ml.{name}.{size}", f.gpu, num_gpus, f.ami, f.takes_volume, price, f.warning)
        for name, f in _FAMILIES.items()
        for size, (num_gpus, price) in f.sizes.items()
    )


@cache
def _hosting_types() -> frozenset[str]:
    """The names of all types that SageMaker has for endpoints, as far as botocore knows."""
    # botocore reads megabytes for this, so only the look-up of a CPU type pays for it
    from botocore.session import get_session

    shape = get_session().get_service_model("sagemaker").shape_for("ProductionVariantInstanceType")
    return frozenset(shape.enum)


def find_instance(name: str) -> InstanceType | None:
    """The instance type of a name; None if it is not known, or known not to work.

    CPU types of x86 families are found as well, with a warning, because they are for tests of small models.
    """
    for instance in all_gpu_instances():
        if instance.name == name:
            return instance
    found = re.fullmatch(r"ml\.([\w-]+)\.\w+", name)
    if found and _X86_CPUS.fullmatch(found[1]) and name in _hosting_types():
        return InstanceType(
            name,
            gpu=None,
            num_gpus=0,
            ami=None,
            takes_volume="d" not in found[1],
            price_usd_hour=_CPU_PRICES.get(name),
            warning="without a GPU the model runs in FP32 on the CPU: for tests with a small model only",
        )
    return None


def why_not(name: str) -> str:
    """A sentence for the user: why `find_instance` finds nothing, and what would be right."""
    found = re.fullmatch(r"ml\.([\w-]+)\.\w+", name)
    if found:
        for pattern, reason in _UNSUPPORTED.items():
            if re.fullmatch(pattern, found[1]):
                return f"{name} does not work: {reason}"
    known = [instance.name for instance in all_gpu_instances()]
    if found and _X86_CPUS.fullmatch(found[1]):
        known = [one for one in sorted(_hosting_types()) if _X86_CPUS.fullmatch(one.split(".")[1])]
    near = difflib.get_close_matches(name if name.startswith("ml.") else f"ml.{name}", known, n=3, cutoff=0.5)
    return f"{name}: no such instance type; did you mean {', '.join(near or ['ml.g4dn.2xlarge'])}?"


def next_ami(instance: InstanceType, used: str | None) -> str | None:
    """The host image to try when a container dies on the one that was used; None if there is no other.

    The newest is tried first, as it is each type's own choice; after any other image comes the type's own.
    """
    if instance.ami is None:
        return None
    ways = _AMIS[_AMIS.index(instance.ami) :]
    return next(iter(ways[ways.index(used) + 1 :]), None) if used in ways else instance.ami


def one_gpu_sibling(instance: InstanceType) -> InstanceType | None:
    """The smallest type of the same family with one GPU; None if there is none."""
    siblings = [i for i in all_gpu_instances() if i.family == instance.family and i.num_gpus == 1]
    return siblings[0] if siblings else None
