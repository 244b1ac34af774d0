"""The smallest student that still has every level: words of a command line."""

STUDENT = (
    "student=centerpoint_tiny",
    "student.detector.pillar=0.8",
    "student.detector.num_sweeps=1",
    "student.detector.pillar_channels=8",
    "student.detector.channels=[8,8,8]",
    "student.detector.convs=[1,1,1]",
    "student.detector.strides=[1,2,2]",
    "student.detector.neck_channels=[8,8,8]",
    "student.detector.head.channels=8",
    "trainer=tiny",
    "trainer.pictures=0",
    "loader.num_workers=0",
    "loader.batch_size=2",
    "device=cpu",
)
