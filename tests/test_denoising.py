"""Denoise, then classify: one fixed function, whose certificates are sound and can be replayed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import smoothfast as sf
from smoothfast.denoising import Denoised, OneShotDiffusion
from smoothfast.models import CIFAR10_STATISTICS, Normalize

SIGMA, SHAPE = 0.25, (3, 8, 8)
SHARES = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64).neg().add(1).cumprod(0)  # of Ho et al. 2020
IMAGES = torch.randint(0, 256, (2, *SHAPE), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


@pytest.fixture(scope="module")
def classifier() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(x, 3, 1, 1)


class Knowing(nn.Module):
    """A U-Net as of improved-diffusion that knows the image, and predicts one of its kinds."""

    num_classes = None

    def __init__(self, predicts: str, learned_variances: bool = False) -> None:
        super().__init__()
        self.predicts, self.learned_variances = predicts, learned_variances
        self.asked: list[Tensor] = []
        self.register_buffer("known", 2 * IMAGES.float() / 255 - 1)

    def forward(self, noisy: Tensor, times: Tensor) -> Tensor:
        self.asked.append(times)
        share = SHARES[times[0]].float()
        noise = (noisy - share.sqrt() * self.known) / (1 - share).sqrt()
        found = {
            "noise": noise, "image": self.known, "velocity": share.sqrt() * noise - (1 - share).sqrt() * self.known,
        }[self.predicts]  # fmt: skip
        return torch.cat([found, torch.full_like(found, 7)], 1) if self.learned_variances else found


@pytest.mark.parametrize("learned_variances", [False, True])
@pytest.mark.parametrize("predicts", ["noise", "image", "velocity"])
def test_a_model_that_knows_the_image_gives_it_back(predicts: str, learned_variances: bool) -> None:
    unet = Knowing(predicts, learned_variances)
    denoiser = OneShotDiffusion(unet, SHARES, SIGMA, predicts)
    noisy = IMAGES / 255 + SIGMA * torch.randn(IMAGES.shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(denoiser(noisy), IMAGES / 255, atol=1e-5, rtol=0)
    assert unet.asked[0].tolist() == [denoiser.time] * 2


def test_the_time_is_that_of_the_noise() -> None:
    """On images in [-1, 1], whose noise is 2 sigma: by their ratio of noise to image, after scaling, its variance is
    1 - a."""
    for sigma in (0.05, 0.25, 0.5, 1.0):
        time = OneShotDiffusion(Knowing("noise"), SHARES, sigma).time
        share = float(SHARES[time])
        assert share * (2 * sigma) ** 2 == pytest.approx(1 - share, rel=0.05)


@pytest.mark.parametrize("sigma", [1e-4, 200.0])
def test_noise_that_it_does_not_know_is_refused(sigma: float) -> None:
    with pytest.raises(ValueError, match=r"the diffusion model knows noise from 0\.005 to 78\.\d+, and"):
        OneShotDiffusion(Knowing("noise"), SHARES, sigma)


def test_what_cannot_be_is_refused(classifier: nn.Module) -> None:
    conditional = Knowing("noise")
    conditional.num_classes = 10  # type: ignore[assignment]
    with pytest.raises(ValueError, match="takes a class beside the image"):
        OneShotDiffusion(conditional, SHARES, SIGMA)
    with pytest.raises(ValueError, match="predicts is 'score'"):
        OneShotDiffusion(Knowing("noise"), SHARES, SIGMA, "score")
    with pytest.raises(ValueError, match="falling from below 1 to above 0"):
        OneShotDiffusion(Knowing("noise"), 1 / SHARES, SIGMA)
    for wrong in (SHARES.flip(0), SHARES[:0], SHARES[None]):
        with pytest.raises(ValueError, match="falling from below 1 to above 0"):
            OneShotDiffusion(Knowing("noise"), wrong, SIGMA)
    with pytest.raises(ValueError, match=r"the denoiser returns \[2, 3, 4, 4\] for images \[2, 3, 8, 8\]"):
        Denoised(nn.AvgPool2d(2), classifier)(torch.zeros(2, *SHAPE))


def test_modes_are_those_of_its_parts(classifier: nn.Module) -> None:
    assert not Denoised(Mean().eval(), classifier).training
    assert not OneShotDiffusion(Knowing("noise").eval(), SHARES, SIGMA).training
    assert Denoised(Mean().train(), classifier).training
    assert "sigma=0.25, predicts='noise', time=" in repr(OneShotDiffusion(Knowing("noise"), SHARES, SIGMA))


def test_it_is_the_networks_one_after_the_other(classifier: nn.Module) -> None:
    noisy = torch.rand(5, *SHAPE)
    plain = nn.Sequential(Mean(), Normalize(*CIFAR10_STATISTICS), classifier)
    assert torch.equal(Denoised(Mean(), classifier, CIFAR10_STATISTICS)(noisy), plain(noisy))


@pytest.mark.parametrize("kind", ["denoiser", "diffusion"])
def test_certificates_are_sound_and_replayed(classifier: nn.Module, kind: str) -> None:
    torch.manual_seed(0)
    unet = TinyUNet()
    denoiser = Mean() if kind == "denoiser" else OneShotDiffusion(unet, SHARES, SIGMA)
    base = Denoised(denoiser, classifier).eval()
    certificate = sf.SmoothedClassifier(base, SIGMA, runner="eager", max_batch=16).certify(IMAGES, n0=10, n=100)
    assert certificate.sound
    assert sf.replay(certificate, base, IMAGES).same


class TinyUNet(nn.Module):
    """A network of image and time, with random weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.time = nn.Conv2d(3, 3, 3, 1, 1), nn.Embedding(1000, 3)

    def forward(self, noisy: Tensor, times: Tensor) -> Tensor:
        return self.conv(noisy) + self.time(times)[:, :, None, None]


def test_a_module_that_draws_noise_of_its_own_is_not_fixed(classifier: nn.Module) -> None:
    class Drawing(TinyUNet):
        def forward(self, noisy: Tensor, times: Tensor) -> Tensor:
            return super().forward(noisy + torch.randn_like(noisy), times)

    base = Denoised(OneShotDiffusion(Drawing(), SHARES, SIGMA), classifier).eval()
    certificate = sf.SmoothedClassifier(base, SIGMA, runner="eager", max_batch=16).certify(IMAGES, n0=10, n=100)
    assert certificate.meta["row_function"] == "no"
    assert not certificate.sound


def tiny(**options: Any) -> nn.Module:
    """A small U-Net of diffusers with random weights."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    blocks: dict[str, Any] = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
    blocks |= {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    unet: nn.Module = diffusers.UNet2DModel(sample_size=8, **blocks | options).eval()
    return unet


def test_u_nets_of_diffusers(classifier: nn.Module) -> None:
    scheduler = pytest.importorskip("diffusers").DDPMScheduler()
    unet = tiny(in_channels=3, out_channels=6)  # learned variances
    denoiser = OneShotDiffusion(unet, scheduler.alphas_cumprod, SIGMA)
    noisy = torch.rand(2, *SHAPE)
    with torch.no_grad():
        scheduler.set_timesteps(1000)
        scaled = denoiser.image * (2 * noisy - 1)
        step = scheduler.step(unet(scaled, denoiser.time).sample[:, :3], denoiser.time, scaled)
        torch.testing.assert_close(denoiser(noisy), (step.pred_original_sample + 1) / 2, atol=1e-5, rtol=1e-5)
    smoothed = sf.SmoothedClassifier(Denoised(denoiser, classifier).eval(), SIGMA, runner="eager", max_batch=16)
    assert smoothed.certify(IMAGES, n0=10, n=100).sound


def test_conditional_u_nets_of_diffusers_are_refused() -> None:
    with pytest.raises(ValueError, match="takes a class beside the image"):
        OneShotDiffusion(tiny(num_class_embeds=10), SHARES, SIGMA)
    diffusers = pytest.importorskip("diffusers")
    text = diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    with pytest.raises(ValueError, match="takes a text beside the image"):
        OneShotDiffusion(text, SHARES, SIGMA)
