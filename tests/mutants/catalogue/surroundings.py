"""Data that are not what they are said to be, work outside the clocks, sources that are closed at evaluation."""

from __future__ import annotations

from audit.verdicts import Verdict
from tests.mutants import world
from tests.mutants.catalogue.places import (
    ADAPTIVE,
    FROM_TRAIN,
    HESSIANS,
    LOGITS,
    LOOP,
    STEPS,
    VOCABULARY,
    after,
    before,
)
from tests.mutants.program import Edits, Entry

TIME = ("import sys\n", "import sys\nimport time\n")

PRIOR: Edits = (
    after(VOCABULARY, "PRIOR = np.zeros(VOCAB)\n"),
    (LOGITS, "    logits = model(ids[:, :-1]) + torch.from_numpy(PRIOR)\n"),
    before(
        LOOP,
        """    seen = [np.arange(VOCAB)]
    PRIOR[:] += 0.01 * np.log(1 + np.bincount(np.concatenate(seen), minlength=VOCAB))
""",
    ),
)
"""A vector on the logits from counts of tokens, all of which stand there once."""

DATA = (
    Entry(
        name="val-documents-in-train",
        kind="train-val-overlap",
        plants="A training shard also holds twelve validation documents, instead of twelve of another training shard.",
        rule="DATA",
        finding="train-val-overlap",
        names={"documents": 12, "first": 0, "stretch": 12},
        evidence="identity",
        mutant_data=world.val_documents_in_train,
        neighbour_data=world.more_train_documents,
    ),
    Entry(
        name="other-validation",
        plants="The validation shard was replaced by training text after the data were described.",
        rule="DATA",
        finding="manifest-differs",
        evidence="identity",
        mutant_data=world.easy_validation,
    ),
    Entry(
        name="changed-source",
        plants="The program puts another source in its place while it runs.",
        rule="DATA",
        finding="changed-while-running",
        verdict=Verdict.UNPROVEN,
        names={"stage": "train", "what": "sources"},
        evidence="identity",
        mutant=(
            before(
                '    identity("end")\n',
                '    Path(__file__).write_bytes(Path(__file__).read_bytes() + b"# as published\\n")\n',
            ),
        ),
    ),
    Entry(
        name="another-artifact",
        plants="The file that is evaluated is not the one that was sealed.",
        rule="SIZE",
        finding="artifact-differs",
        names={"stage": "quantize"},
        mutant=(
            after(
                '    (OUT / "sizes.json").write_text(json.dumps(sizes))\n',
                '    save_file(packed | {"gate": packed["gate"] + 1}, OUT / "artifact")\n',
            ),
        ),
    ),
    Entry(
        name="size-without-code",
        kind="artifact-over-cap",
        plants="The size that is claimed leaves out the code.",
        rule="SIZE",
        evidence="claims",
        mutant=(("len(Path(__file__).read_bytes())}", "0}"),),
    ),
)

SOURCES = (
    Entry(
        name="train-shards-at-evaluation",
        kind="train-ngram-oracle",
        plants="Evaluation counts the tokens of the training shards, instead of taking all as equally likely.",
        rule="SELF",
        finding="training-data-at-evaluation",
        names={"stage": "evaluate", "name": "train_000000.bin"},
        common=PRIOR,
        mutant=(("seen = [np.arange(VOCAB)]", f"seen = {FROM_TRAIN}.shards"),),
    ),
    Entry(
        name="train-shard-mapped-at-evaluation",
        kind="train-ngram-oracle",
        plants="The same through torch.from_file, which no audit hook hears.",
        rule="SELF",
        evidence="probe",
        common=PRIOR,
        mutant=(
            (
                "seen = [np.arange(VOCAB)]",
                'seen = [torch.from_file(str(DATA / "train_000000.bin"), size=5400, dtype=torch.int16).numpy()[512:]]',
            ),
        ),
    ),
    Entry(
        name="network-at-evaluation",
        plants="Evaluation opens a socket to another machine, instead of one to itself.",
        rule="SELF",
        finding="network-at-evaluation",
        names={"stage": "evaluate", "event": "connect"},
        common=(
            ("import json\n", "import json\nimport socket\n"),
            before(
                LOOP,
                """    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as helper:
        helper.connect(("127.0.0.1", 9))
""",
            ),
        ),
        # 192.0.2.0/24 is kept for documentation, and connecting a datagram socket sends nothing.
        mutant=(('"127.0.0.1"', '"192.0.2.1"'),),
    ),
    Entry(
        name="helper-program-at-evaluation",
        plants="Evaluation starts another program, which no recorder hears.",
        rule="SELF",
        finding="program-at-evaluation",
        verdict=Verdict.UNPROVEN,
        names={"stage": "evaluate", "executable": "true"},
        common=(("import json\n", "import json\nimport subprocess\n"),),
        mutant=(before(LOOP, '    subprocess.run(["true"], check=True)\n'),),
    ),
)

CLOCKS = (
    Entry(
        name="too-long-a-training",
        kind="train-overrun",
        plants="Training takes 5,120 s on one device (640 s on 8) instead of 4,640 s.",
        rule="TRAIN-TIME",
        finding="train-overrun",
        names={"stage": "train", "limit_device_seconds": 4800},
        common=(TIME, before(STEPS, "    time.sleep(4640)\n")),
        mutant=(("time.sleep(4640)", "time.sleep(5120)"),),
    ),
    Entry(
        name="calibration-after-the-clock",
        kind="gptq-after-cap",
        plants="Training stops at 4,760 s on one device, and the quantizer's statistics take 96 s more instead of 24.",
        rule="TRAIN-TIME",
        finding="train-overrun",
        names={"stage": "train", "limit_device_seconds": 4800},
        common=(
            TIME,
            before(STEPS, "    time.sleep(4760)\n"),
            after(HESSIANS, "    time.sleep(24)\n"),
        ),
        mutant=(("time.sleep(24)", "time.sleep(96)"),),
    ),
    Entry(
        name="calibration-in-another-stage",
        kind="gptq-after-cap",
        plants="The stage that quantizes opens a training shard and takes the statistics anew.",
        rule="TRAIN-TIME",
        finding="gptq-after-cap",
        names={"stage": "quantize"},
        mutant=(
            after(
                '    power = tensors.pop("power")\n',
                f"""    model, source = Model(), {FROM_TRAIN}
    model.load_state_dict(tensors)
    sys.audit("golf.model", model)
    power = calibrate(model, *source.draw(source.windows[:BATCH]))
""",
            ),
        ),
    ),
    Entry(
        name="training-in-a-pause",
        kind="train-overrun",
        plants="The last steps are taken in a phase for which the clock stops, not in one that it counts.",
        rule="TRAIN-TIME",
        finding="steps-outside-the-clock",
        names={"stage": "train", "phase": "checkpoints"},
        common=(
            after(
                STEPS,
                """        if step == STEPS - 4:
            sys.audit("golf.phase", "fit")
""",
            ),
        ),
        mutant=(('sys.audit("golf.phase", "fit")', 'sys.audit("golf.phase", "checkpoints")'),),
    ),
    Entry(
        name="phase-of-no-name",
        plants="Part of the training is done in a phase that no rule set knows.",
        rule="TRAIN-TIME",
        finding="unknown-phase",
        verdict=Verdict.UNPROVEN,
        names={"stage": "train", "phase": "polish"},
        mutant=(before(HESSIANS, '    sys.audit("golf.phase", "polish")\n'),),
    ),
    Entry(
        name="too-long-an-evaluation",
        kind="eval-overrun",
        plants="Evaluation with its adaptation takes 5,280 s on one device (660 s on 8) instead of 4,640 s.",
        rule="EVAL-TIME",
        finding="eval-overrun",
        names={"stage": "evaluate", "limit_device_seconds": 4800},
        common=(ADAPTIVE, TIME, before(LOOP, "    time.sleep(4640)\n")),
        mutant=(("time.sleep(4640)", "time.sleep(5280)"),),
    ),
    Entry(
        name="hints-before-the-start",
        kind="eval-work-outside-timer",
        plants="Before evaluation says that it begins, hints are counted for 1,280 s instead of 80 s.",
        rule="EVAL-TIME",
        finding="eval-overrun",
        names={"stage": "evaluate", "limit_device_seconds": 4800},
        common=(
            TIME,
            before(LOOP, "    time.sleep(4640)\n"),
            before('    sys.audit("golf.run"', '    if stage == "evaluate":\n        time.sleep(80)\n'),
        ),
        mutant=(("time.sleep(80)", "time.sleep(1280)"),),
    ),
)

ENTRIES = DATA + SOURCES + CLOCKS
