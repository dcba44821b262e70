import diffusers
import torch

from mezzotint.train.tasks.distill import boundary_scales, teacher_grid


def test_boundary_scales_are_the_lcm_schedulers():
    scheduler = diffusers.LCMScheduler()
    for time in (0, 19, 500, 999):
        skip, out = scheduler.get_scalings_for_boundary_condition_discrete(
            torch.tensor(float(time))
        )
        ours = boundary_scales(torch.tensor([time]))
        torch.testing.assert_close(ours[0][0], skip)
        torch.testing.assert_close(ours[1][0], out)
    assert boundary_scales(torch.tensor([0]))[0].item() == 1.0


def test_the_teachers_grid_holds_every_place_the_student_will_be_asked_at():
    grid = teacher_grid(1000, 50)
    assert grid.tolist()[:2] == [19, 39]
    assert grid[-1] == 999
    scheduler = diffusers.LCMScheduler(original_inference_steps=50)
    for steps in (1, 2, 4, 8):
        scheduler.set_timesteps(steps)
        assert set(scheduler.timesteps.tolist()) <= set(grid.tolist())
