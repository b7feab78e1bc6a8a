"""What takes the place of an image that cannot be read."""


def test_what_takes_a_corrupt_images_place_follows_from_its_seed():
    from neutreno.data.loading import AugmentedDataset, CorruptLog, CorruptSample

    class Samples(list):
        def __getitem__(self, index):
            if index % 2:
                raise CorruptSample(f"sample {index}")
            return super().__getitem__(index)

    samples = Samples((i, i) for i in range(20))
    data = AugmentedDataset(samples, lambda *sample: sample, CorruptLog("/dev/null", 20))
    taken = [data[3, seed][1] for seed in range(30)]
    assert taken == [data[3, seed][1] for seed in range(30)] and len(set(taken)) > 5
    assert not any(index % 2 for index in taken) and data[3] is None
