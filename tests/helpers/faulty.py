"""train.fit with a fault put into one of its processes: python tests/helpers/faulty.py FAULT RANK BATCH OPTIONS..."""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import warnings  # noqa: E402

import torch  # noqa: E402

from train import callbacks, fit, shares  # noqa: E402
from train.module import FlowModule  # noqa: E402
from train.shapes import MovingShapes  # noqa: E402

warnings.filterwarnings("ignore", message="LightningCLI.s args")
fault, rank, batch = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
here = int(os.environ.get("LOCAL_RANK", 0)) == rank
losses, calls = FlowModule._losses, 0


class Overflow(torch.autograd.Function):
    """The value itself, and an infinite gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return torch.full_like(grad, torch.inf)


class BreakBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        raise torch.OutOfMemoryError("CUDA out of memory in the backward pass")


def faulty(self, model, *args):
    loss, errors = losses(self, model, *args)
    trains = model.training and torch.is_grad_enabled() and here
    return spoil(loss) if trains else loss, errors


def spoil(loss):
    global calls
    calls += 1
    if calls != batch:
        return loss
    if fault == "nan":
        return loss * torch.nan
    if fault == "gradient":
        return Overflow.apply(loss)
    if fault == "memory":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    if fault == "backward":
        return BreakBackward.apply(loss)
    if fault == "bug":
        return {}["no such key"]
    if fault in ("kill", "stop"):
        os.kill(os.getpid(), signal.SIGKILL if fault == "kill" else signal.SIGSTOP)
    return loss


FlowModule._losses = faulty
if fault == "data" and here:
    item = MovingShapes.__getitem__

    def broken(self, key):
        if getattr(key, "pass_", -1) >= 0 and fetched.append(key) is None and len(fetched) > batch:
            raise ValueError("no clip in clips can be read: all 3 broke")
        return item(self, key)

    fetched = []
    MovingShapes.__getitem__ = broken
if fault == "worker" and here:
    item = MovingShapes.__getitem__

    def killed(self, key):
        if torch.utils.data.get_worker_info() is not None and getattr(key, "pass_", -1) >= 0:
            fetched.append(key)
            if len(fetched) > batch:
                os.kill(os.getpid(), signal.SIGKILL)
        return item(self, key)

    fetched = []
    MovingShapes.__getitem__ = killed
if fault in ("disk", "kill-save") and here:
    write, written = shares.write_file, []

    def broken_write(*args):
        """Of the so-manieth checkpoint a part alone."""
        written.append(args[0].write_bytes(b"half"))
        if len(written) < batch:
            return write(*args)
        if fault == "kill-save":
            os.kill(os.getpid(), 9)
        raise OSError(28, "No space left on device")

    shares.write_file = broken_write
if fault == "sheet":
    callbacks.draw_contact_sheet = callbacks.draw_loss_curve = lambda *_: 1 / 0
if fault == "sample":
    FlowModule.sample = lambda *_, **__: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory"))

if __name__ == "__main__":
    fit.main(sys.argv[4:])
