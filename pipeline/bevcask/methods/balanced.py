"""The balanced divergence of HarmoDistill-BEV: forward and reverse, of softmaxes over positions."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Balance:
    """How much either direction weighs, and how soft its softmaxes are.

    Attributes:
        forward: factor of KL(teacher, student): the student covers whatever the teacher shows.
        reverse: factor of KL(student, teacher): it keeps to where the teacher shows most.
        forward_temperature: tau of the first.
        reverse_temperature: tau of the second.
    """

    forward: float
    reverse: float
    forward_temperature: float
    reverse_temperature: float


def balanced(student_NCP: Tensor, teacher_NCP: Tensor, balance: Balance) -> Tensor:
    """Return the mean over images and channels of both divergences, each times its tau^2.

    Args:
        student_NCP: one map of P positions an image and channel; one softmax each.
        teacher_NCP: the same of the teacher.
        balance: what each direction weighs.
    """
    total, shared = student_NCP.new_zeros(()), None
    for factor, temperature, reverse in (
        (balance.forward, balance.forward_temperature, False),
        (balance.reverse, balance.reverse_temperature, True),
    ):
        if not factor:
            continue
        if shared is None or balance.forward_temperature != balance.reverse_temperature:
            shared = [(own / temperature).log_softmax(2) for own in (student_NCP, teacher_NCP)]
        log_p_NCP, log_t_NCP = shared
        of_NCP, to_NCP = (log_p_NCP, log_t_NCP) if reverse else (log_t_NCP, log_p_NCP)
        divergence = functional.kl_div(to_NCP, of_NCP, reduction="sum", log_target=True)
        total = total + factor * temperature**2 * divergence
    return total / (student_NCP.shape[0] * student_NCP.shape[1])
