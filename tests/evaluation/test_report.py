from rich.console import Console

from bevcask.evaluation.report import score_report


def text(result: dict[str, object]) -> str:
    console = Console(width=120, record=True, file=None, quiet=False)
    with console.capture() as capture:
        console.print(score_report(result))
    return capture.get()


def test_means_classes_and_the_rest_are_shown() -> None:
    means = dict.fromkeys(("mAP", "NDS", "mATE", "mASE", "mAOE", "mAVE", "mAAE"), 0.25)
    row = {"AP": 0.5, "ATE": 0.1, "ASE": 0.2, "AOE": None, "AVE": None, "AAE": None, "boxes": 7}
    shown = text({**means, "per_class": {"barrier": row}, "coverage": "partial: 8 of 24 frames"})
    assert "0.2500" in shown
    line = next(line for line in shown.splitlines() if "barrier" in line)
    assert "0.500" in line
    assert "-" in line
    assert "7" in line
    assert "partial: 8 of 24 frames" in shown


def test_a_run_without_validation_shows_what_it_has() -> None:
    shown = text({"seconds_per_step": 0.5, "student": "bevdepth"})
    assert "bevdepth" in shown
    assert "mAP" not in shown
