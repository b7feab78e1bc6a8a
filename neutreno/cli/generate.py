"""Continue a text with a trained language model.

neutreno generate outputs/RUN --prompt "The class statement"
neutreno generate outputs/RUN --prompt "= Valkyria =" --tokens 200 --temperature 0.8 --top-k 40 --seed 1

Needs only the run folder: its checkpoints hold the vocabulary.
"""

import re
import sys
from collections.abc import Iterator, Sequence
from itertools import islice

from neutreno.cli import add_trust, command, parser_of
from neutreno.errors import InputError, check_number


def load(folder: str, which: str, trust: Sequence[str] = ()):
    """(model, vocabulary, sequence length) of a run."""
    from neutreno.attention import needs_others
    from neutreno.checkpoints import load_strictly, read_checkpoint, state_dict_of
    from neutreno.config.trust import build_trusted
    from neutreno.data.text import Vocabulary
    from neutreno.runs import RunFolder

    run = RunFolder(folder)
    settings = run.config()
    path = run.best_checkpoint if which == "best" else run.last_checkpoint
    checkpoint = read_checkpoint(path)
    if not isinstance(words := checkpoint.get("vocabulary"), str):
        raise InputError(f"{path} holds no vocabulary: it is not that of a language model")
    vocabulary = Vocabulary(words.split("\n"))
    model = build_trusted(settings["model"], trust, vocabulary=vocabulary)
    if others := needs_others(model):
        raise InputError(f"{folder} cannot continue a text, which is one sequence: {others}")
    load_strictly(model, state_dict_of(checkpoint), path)
    window = settings["data"].get("sequence_length")
    check_number(f"{run.config_file}: data.sequence_length", window, 1, integer=True)
    return model.eval(), vocabulary, window


def prompt_words(prompt: str, vocabulary) -> list[str]:
    """Words of a prompt; one that the model does not know is tried without the punctuation in it."""
    from neutreno.data.text import split_words

    words = []
    for word in split_words(prompt):
        words += [word] if word in vocabulary.index else [m.group() for m in re.finditer(r"\w+|([^\w\s])\1*", word)]
    return words


def sample(model, ids: list[int], window: int, temperature: float, top_k: int | None, seed: int) -> Iterator[int]:
    """Ids of tokens that may follow ``ids``, without end; at most ``window`` tokens are seen at once."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    while True:
        with torch.no_grad():
            log_p = model.next_token(torch.tensor([ids[-window:]]))[0]
        if temperature == 0:
            chosen = log_p.argmax()
        else:
            log_p = log_p / temperature
            if top_k is not None:
                log_p[log_p < log_p.topk(min(top_k, len(log_p))).values[-1]] = -torch.inf
            chosen = torch.multinomial(log_p.softmax(0), 1, generator=generator)
        ids = [*ids, int(chosen)]
        yield ids[-1]


@command
def main(arguments: Sequence[str]) -> None:
    parser = parser_of("generate", __doc__)
    parser.add_argument("run", metavar="RUN", help="run folder")
    parser.add_argument("--prompt", default="", help="text to continue; default: the beginning of a line")
    parser.add_argument("--tokens", type=int, default=100, help="tokens to write; default: %(default)s")
    parser.add_argument("--temperature", type=float, default=1.0, help="0: the most likely; default: %(default)s")
    parser.add_argument("--top-k", type=int, help="draw among the k most likely tokens only")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", choices=["last", "best"], default="last")
    add_trust(parser)
    arguments = parser.parse_args(arguments)
    check_number("--tokens", arguments.tokens, 1, integer=True)
    if arguments.temperature != 0:
        check_number("--temperature", arguments.temperature, 1e-3)
    check_number("--seed", arguments.seed, most=2**63 - 1, integer=True)
    if arguments.top_k is not None:
        check_number("--top-k", arguments.top_k, 1, integer=True)
    model, vocabulary, window = load(arguments.run, arguments.checkpoint, arguments.trust)
    words = prompt_words(arguments.prompt, vocabulary)
    if unknown := sorted({word for word in words if word not in vocabulary.index}):
        print(f"the model does not know {', '.join(unknown)}", file=sys.stderr)
    prompt = [vocabulary.index.get(word, vocabulary.unk) for word in words]
    start = prompt or [vocabulary.index["<eos>"]]  # a line begins
    following = sample(model, start, window, arguments.temperature, arguments.top_k, arguments.seed)
    print(vocabulary.decode([*prompt, *islice(following, arguments.tokens)]))
