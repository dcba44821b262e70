"""Configuration of the kinds of run that are no plain diffusion."""

from dataclasses import dataclass
from typing import Literal

from mezzotint.errors import InvalidRequest
from mezzotint.plain import Checked, check_range

__all__ = ["AdversarialConfig", "AutoencoderConfig", "DistillConfig", "LoraConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoencoderConfig(Checked):
    """The latent space (``kind = "autoencoder"``); levels come from ``network.channels``.

    Args:
        latent_channels: Channels of the latents.
        kl_weight: Weight of the pull towards a unit normal.
        gradient_weight: Weight of the error of horizontal and vertical differences,
            which keeps edges sharp.
        mean_squared: Use squared instead of absolute error.
    """

    latent_channels: int = 4
    kl_weight: float = 1e-6
    gradient_weight: float = 0.5
    mean_squared: bool = False

    def _validate(self) -> None:
        check_range("autoencoder.latent_channels", self.latent_channels, 1, 64)
        check_range("autoencoder.kl_weight", self.kl_weight, 0, 100)
        check_range("autoencoder.gradient_weight", self.gradient_weight, 0, 100)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdversarialConfig(Checked):
    """GAN training (``kind = "gan"``).

    Args:
        loss: ``dcgan`` (the non-saturating loss) or ``relativistic`` (each real
            against a fake, with gradient penalties on both; arXiv:2501.05441).
        architecture: ``dcgan`` (transposed convolutions, batch normalisation) or
            ``residual`` (interpolation and residual blocks, nothing normalised).
        latent_size: Length of z.
        base_channels: Width of the level nearest the pixels.
        channels: Width of each level from 4 px up, for ``residual``; () doubles
            ``base_channels`` with each halving of the side, up to 16 times.
        mapping_layers: Layers of the mapping network from z to w, so that walks and
            truncation are smooth (arXiv:1812.04948); 0 for none.
        penalty: Weight of the two gradient penalties of ``relativistic``.
        penalty_share: Share of each batch that the penalties are measured on, at
            least one picture; less is faster and noisier, and the mean is the same.
        spread: Weight of the pull between two pictures of one class from two latents
            that are more alike than ``spread_bound``, so that the generator does not
            draw one picture a class (as arXiv:1901.09024); 0 is off.
        spread_share: Share of each batch that is drawn a second time for it.
        spread_bound: Mean absolute difference of pixels in [-1, 1] that is enough.
        augment: Probability of a differentiable augmentation of what the
            discriminator sees, fakes and reals alike (arXiv:2006.10738).
        discriminator_rate: Learning rate of the discriminator relative to the generator's.
    """

    loss: Literal["dcgan", "relativistic"] = "relativistic"
    architecture: Literal["dcgan", "residual"] = "dcgan"
    latent_size: int = 64
    base_channels: int = 32
    channels: tuple[int, ...] = ()
    mapping_layers: int = 0
    penalty: float = 1.0
    penalty_share: float = 1.0
    spread: float = 0.0
    spread_share: float = 0.25
    spread_bound: float = 0.2
    augment: float = 0.5
    discriminator_rate: float = 1.0

    def _validate(self) -> None:
        check_range("adversarial.latent_size", self.latent_size, 1, 4096)
        check_range("adversarial.base_channels", self.base_channels, 4, 1024)
        check_range("adversarial.mapping_layers", self.mapping_layers, 0, 64)
        for position, width in enumerate(self.channels):
            check_range(f"adversarial.channels[{position}]", width, 2, 4096)
        if self.channels and self.architecture != "residual":
            raise InvalidRequest(
                'adversarial.channels belongs to adversarial.architecture "residual"; '
                "a DCGAN takes adversarial.base_channels",
                field="adversarial.channels",
            )
        check_range("adversarial.penalty", self.penalty, 0, 1000)
        check_range("adversarial.penalty_share", self.penalty_share, 0.001, 1)
        check_range("adversarial.spread", self.spread, 0, 1000)
        check_range("adversarial.spread_share", self.spread_share, 0.001, 1)
        check_range("adversarial.spread_bound", self.spread_bound, 0, 2)
        check_range("adversarial.augment", self.augment, 0, 1)
        check_range("adversarial.discriminator_rate", self.discriminator_rate, 0.01, 100)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraConfig(Checked):
    """A low-rank change of a loaded model (``kind = "lora"``).

    Args:
        rank: Rank of each change.
        alpha: Scale; None is the rank, so that the change is used as learned.
        modules: Names of the layers changed, as suffixes.
        dropout: Dropout before each change.
        merge: Also write the whole model with the change merged in, so that the
            run folder is a model; without it the run folder holds the change alone.
    """

    rank: int = 8
    alpha: float | None = None
    modules: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    dropout: float = 0.0
    merge: bool = True

    def _validate(self) -> None:
        check_range("lora.rank", self.rank, 1, 1024)
        check_range("lora.alpha", self.alpha, 1e-6, 1e6)
        check_range("lora.dropout", self.dropout, 0, 0.9)
        if not self.modules:
            raise InvalidRequest("lora.modules must name at least one layer", field="lora.modules")


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillConfig(Checked):
    """A few-step student of a loaded model (``kind = "distill"``; arXiv:2310.04378).

    Args:
        steps: Steps the student is meant for; also the model's default.
        teacher_steps: Steps of the teacher's DDIM grid, a multiple of ``steps``.
        guidance: Range of guidance scales folded into the student.
        target_decay: Decay of the target network.
        huber: Width of the pseudo-Huber loss.
    """

    steps: int = 4
    teacher_steps: int = 50
    guidance: tuple[float, float] = (3.0, 3.0)
    target_decay: float = 0.95
    huber: float = 1e-3

    def _validate(self) -> None:
        check_range("distill.steps", self.steps, 1, 100)
        check_range("distill.teacher_steps", self.teacher_steps, self.steps, 1000)
        for scale in self.guidance:
            check_range("distill.guidance", scale, 0, 100)
        check_range("distill.target_decay", self.target_decay, 0, 0.99999)
        check_range("distill.huber", self.huber, 1e-6, 10)
