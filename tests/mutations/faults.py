"""Faults that a slip of the hand could bring in, each with the tests that must notice it.

`before` stands once in the package, wherever that is; where the code has changed, plant the same fault again.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """What is wrong when `after` stands in place of `before`, and the test files that notice."""

    name: str
    before: str
    after: str
    tests: tuple[str, ...]


FAULTS = (
    # the loop and its parts
    Fault(
        "the halves of guidance are swapped",
        "unconditional, conditional = noise_pred.chunk(2)",
        "conditional, unconditional = noise_pred.chunk(2)",
        ("test_denoise.py",),
    ),
    Fault(
        "rescaled guidance is scaled the wrong way",
        "conditional.std(axes, keepdim=True) / guided.std(axes, keepdim=True)",
        "guided.std(axes, keepdim=True) / conditional.std(axes, keepdim=True)",
        ("test_denoise.py",),
    ),
    Fault(
        "second-order schedulers start at the wrong timestep",
        "(steps - min(int(steps * strength), steps)) * scheduler.order",
        "(steps - min(int(steps * strength), steps))",
        ("test_parity_images.py",),
    ),
    Fault(
        "what is known of a picture is put back at the level of the step before",
        "timesteps[count + 1] if count + 1 < len(timesteps) else None",
        "timesteps[count] if count + 1 < len(timesteps) else None",
        ("test_oracle.py",),
    ),
    Fault(
        "all pictures of a batch share one stream of noise",
        '"generator": list(generators)',
        '"generator": [generators[0]] * len(generators)',
        ("test_denoise.py",),
    ),
    Fault(
        "steps of two evaluations are told one evaluation early",
        "(count + 1) % scheduler.order == 0",
        "count % scheduler.order == 0",
        ("test_denoise.py",),
    ),
    Fault(
        "a later pass is counted from its own first step",
        "index=before + step.index",
        "index=step.index",
        ("test_passes.py",),
    ),
    Fault(
        "a DiT's variance is taken for the noise",
        "predicted[:, : sample.shape[1]]",
        "predicted[:, -sample.shape[1] :]",
        ("test_denoise.py",),
    ),
    Fault(
        "latents are not shifted",
        "(z - self.shift_factor if self.shift_factor else z)",
        "z",
        ("test_latent_space.py",),
    ),
    # loading
    Fault(
        "tensors of another shape are not refused",
        "if found != shape:",
        "if len(found) != len(shape):",
        ("test_loading.py",),
    ),
    Fault(
        "queries and keys of old attention are swapped",
        '(".query.", ".to_q."), (".key.", ".to_k.")',
        '(".query.", ".to_k."), (".key.", ".to_q.")',
        ("test_loading.py",),
    ),
    Fault(
        "an SD 2.1 file that does not say so is taken to predict noise",
        '{None: "sd21-v", False: "sd21-base", True: "sd21-v"}',
        '{None: "sd21-base", False: "sd21-base", True: "sd21-v"}',
        ("test_families.py",),
    ),
    Fault(
        "pickles are opened",
        "if path.suffix.lower() in PICKLES:",
        "if path.suffix.lower() in ():",
        ("test_families.py", "test_loading.py"),
    ),
    Fault(
        "an original file's attention keeps the first third of its weights for all",
        "tensor.chunk(3)[third]",
        "tensor.chunk(3)[0]",
        ("test_loading_single_file.py",),
    ),
    Fault(
        "files that change while they are loaded are not noticed",
        "kept.model)\n        weights.check_unchanged()",
        "kept.model)\n        weights.digests",
        ("test_maker.py",),
    ),
    # metadata and files
    Fault(
        "a skipped layer is not told to other tools",
        "condition.clip_skip if condition.clip_skip > 1 else None",
        "condition.clip_skip if condition.clip_skip > 2 else None",
        ("test_metadata.py",),
    ),
    Fault(
        "a picture that was edited counts as intact",
        "intact=recorded == digest if recorded else None",
        "intact=True if recorded else None",
        ("test_metadata.py", "test_replay.py"),
    ),
    Fault(
        "a file that came into being meanwhile is overwritten",
        "path.hardlink_to(temporary)",
        "temporary.replace(path)",
        ("test_outputs.py",),
    ),
    # the ledger
    Fault(
        "a picture that was changed counts as made",
        'return entry if digest == line["sha256"] else None',
        "return entry",
        ("jobs/test_ledger.py", "test_batch.py"),
    ),
    Fault(
        "a line that a kill has torn swallows the next one",
        'if data and not data.endswith(b"\\n"):',
        "if False:",
        ("jobs/test_ledger.py",),
    ),
    Fault(
        "two batches write into one directory",
        "fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)",
        ("jobs/test_ledger.py", "test_batch.py"),
    ),
    # the server and the shell
    Fault(
        "one picture too many is let into the line",
        "if len(self._jobs) > self.limit and not under_way:",
        "if len(self._jobs) > self.limit + 1 and not under_way:",
        ("serving/test_line.py",),
    ),
    Fault(
        "who goes away is worked for to the end",
        "if self.cancelled.is_set():",
        "if not self.cancelled:",
        ("serving/test_line.py",),
    ),
    Fault(
        "a warm process of another version is trusted",
        "_check_version(path, response.headers[VERSION_HEADER])",
        "response.headers[VERSION_HEADER]",
        ("serving/test_warm.py",),
    ),
    Fault(
        "a command that is told to end says that it has succeeded",
        "if number is None else 128 + number",
        "if number is None else ExitStatus.OK",
        ("test_generate.py",),
    ),
)
