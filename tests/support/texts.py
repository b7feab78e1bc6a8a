TRAIN = "the cat  saw the Dog\n \n\nthe dog <unk> saw <unk>\tcat and\u00a0one zebra ant\r\nDog é the end"
TEXTS = {"train": TRAIN, "valid": "the ant saw a whale\n\n", "test": "Dog\nend of the\n"}


def write(root, texts=TEXTS, name="{}.txt"):
    root.mkdir(exist_ok=True)
    for split, text in texts.items():
        (root / name.format(split)).write_bytes(text.encode())
    return root
