"""Every setting of the server, with its default, its range and its reason.

The same names are the flags of `python -m serve_app`, the `args` of `serve.yaml` and the arguments of
`serve run serve_app.app:build_app name=value`. An unknown name is an error.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from serve_app.errors import SettingsError, shown
from serve_app.policy.hint import Hint, number_or_text, parse_quality


def _split(value: object) -> object:
    """`a,b` from a command line; lists pass."""
    return [part for part in value.split(",") if part] if isinstance(value, str) else value


def _number(value: object) -> object:
    """`0.98` from a command line; all else passes."""
    return number_or_text(value) if isinstance(value, str) else value


def _absolute(path: Path | None) -> Path | None:
    """Where the person who gives it stands: processes of a cluster may stand elsewhere."""
    return path and path.absolute()


class Settings(BaseModel):
    """What a server needs to know besides its artifacts."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    artifacts: Path = Field(
        default=Path("artifacts"), description="folder that the converters wrote variants to"
    )
    variants: Annotated[tuple[str, ...], BeforeValidator(_split)] = Field(
        default=(), description="deploy exactly these, by name, instead of the measured ladder"
    )
    aliases: Annotated[tuple[str, ...], BeforeValidator(_split)] = Field(
        default=(), description="further model names that clients may use"
    )
    default_quality: Annotated[str | float, BeforeValidator(_number)] = Field(
        default="balanced", description="quality of requests that bring no hint"
    )
    default_latency_ms: float = Field(
        default=1000.0, gt=0, description="budget of requests that bring no hint"
    )
    threads: int = Field(
        default=1,
        ge=1,
        le=256,
        description="compute threads of a CPU replica for each batch, and its num_cpus",
    )
    streams: int | None = Field(
        default=None,
        ge=1,
        le=64,
        description="batches that a CPU replica runs side by side while cores are idle; "
        "None: as many as cores / threads, 4 at most",
    )
    max_replicas: int | None = Field(
        default=None, ge=1, description="largest replica group of a variant; None: what fits"
    )
    replicas_per_gpu: int | None = Field(
        default=None,
        ge=1,
        le=16,
        description="replicas that share a GPU, and its memory; None: one, or as many as the ladder has "
        "variants for it. One with larger batches does more (docs/gpu.md)",
    )
    cluster_cpus: float | None = Field(
        default=None,
        gt=0,
        description="CPUs that the cluster may have, where replicas that wait bring nodes, as Ray's autoscaler does; "
        "None: those it has when this is deployed",
    )
    cluster_gpus: int | None = Field(
        default=None,
        ge=0,
        description="the same of GPUs; with one and none there yet, variants for it wait for its node",
    )
    min_replicas: int = Field(
        default=1,
        ge=0,
        description="smallest replica group of a variant; 0: without demand none, but for the cheapest",
    )
    autoscaling: Literal["demand", "requests"] = Field(
        default="demand",
        description="what replica groups follow: work asked of a variant, or Serve's request counts",
    )
    calls: Literal["direct", "handle"] = Field(
        default="direct",
        description="how calls reach replicas: over connections of our own, or over Serve's handles",
    )
    scale_down_s: float = Field(
        default=60.0, gt=0, description="quiet time before a variant loses a replica"
    )
    routers: int = Field(default=1, ge=1, le=64, description="router replicas")
    max_texts: int = Field(default=2048, ge=1, description="texts in one request, OpenAI's limit")
    max_body_bytes: int = Field(
        default=8 * 1024 * 1024, ge=1024, description="size of a request's body"
    )
    max_wait_ms: float = Field(
        default=30_000.0, gt=0, description="longest forecast wait without a budget before 429"
    )
    reserve_ms: float = Field(
        default=2.0,
        ge=0,
        description="of each budget, kept for encoding and sending the answer",
    )
    api_keys_file: Annotated[Path | None, AfterValidator(_absolute)] = Field(
        default=None,
        description="file of API keys, one a line, on the routers' nodes; clients send one as a bearer token. "
        "None: nobody needs one",
    )
    cores: float | None = Field(
        default=None,
        gt=0,
        description="cores that the replicas of one host share; None: as many as the router's has",
    )

    def default_hint(self) -> Hint:
        """The hint of requests that bring none."""
        return Hint(
            budget_ms=self.default_latency_ms,
            quality=parse_quality(self.default_quality, param="default_quality"),
        )


def parse_settings(values: dict[str, Any]) -> Settings:
    """Settings from flags, YAML or builder arguments.

    Raises:
        SettingsError: names the key and the value, and for an unknown key those that exist.
    """
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = ", ".join(Settings.model_fields)
            raise SettingsError(f"unknown setting {key!r}; known settings: {known}") from error
        raise SettingsError(
            f"setting {key}: {first['msg']}, got {shown(first['input'])}"
        ) from error
    try:
        settings.default_hint()
    except Exception as error:
        raise SettingsError(f"setting {error}") from error
    return settings
