"""The interaction-query block: folded or fused, against the usual ways to compute it."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from tqdm import tqdm

from lfi_kernels import bench
from lfi_pipeline.benchmarks.outcome import Asked, Measurement, Outcome
from lfi_pipeline.device import resolve_device
from lfi_pipeline.errors import BenchmarkError, ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelConfig:
    """Where and how often.

    Attributes:
        device: `cpu`, `cuda` or `auto`.
        rounds: in which the cases take turns; the median counts.
        quick: tiny sizes, which show that it runs and measure nothing.
    """

    device: str = "auto"
    rounds: int = 20
    quick: bool = False

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ConfigError(f"rounds must be 1 or more, got {self.rounds}.")


def bench_kernel(config: KernelConfig) -> Outcome:
    """Compare every case of `lfi_kernels.bench` on the shapes for this device.

    Raises:
        BenchmarkError: a case computes something else than the reference.
    """
    device = str(resolve_device(config.device))
    shapes = bench.shapes(device, config.quick)
    rows: list[bench.Row] = []
    for shape in tqdm(shapes, desc="kernel", unit="shape", leave=False):
        try:
            rows += bench.compare(shape, device, 1 if config.quick else config.rounds)
        except ValueError as error:
            raise BenchmarkError(str(error)) from error
    plain = [asdict(row) for row in rows]
    return Outcome(
        benchmark="kernel",
        checked="outputs and every gradient against the folded reference in float64",
        measurements=tuple(Measurement(**each | {"case": f"{each['case']}, {each['shape']}"}) for each in plain),
        asked=() if config.quick else tuple(_asked(rows, is_cuda=device.startswith("cuda"))),
        notes=("Forward and backward, to every parameter and both inputs. Dq: channels of a query.",),
    )


def _asked(rows: list[bench.Row], *, is_cuda: bool) -> list[Asked]:
    """What is asked with 16 words: on a GPU of the fused kernels, on the CPU of folding."""
    limits: dict[tuple[str, str], tuple[float | None, float | None]] = {("projected", "time over folded"): (2.5, None)}
    if is_cuda:
        limits = {
            ("projected", "time over fused"): (6.0, None),
            ("compiled folded", "time over fused"): (3.0, None),
            ("fused op", "time over floor"): (None, 2.0),
        }
    return [
        Asked(what=f"{row.case}, {row.shape}: {row.metric}", value=row.value, least=least, most=most)
        for row in rows
        if " M16 " in row.shape and (row.case, row.metric) in limits
        for least, most in [limits[row.case, row.metric]]
    ]
