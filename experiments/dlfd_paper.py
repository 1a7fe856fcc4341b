"""Figures quoted from Choi and Na, Distribution-Level Feature Distancing (arXiv:2409.14747).

Tables 1 and 2 as printed, which disagree in places: Table 2's Age column for ResNet18 has NegGrad,
CF-k and EU-k in another order than Table 1's NoMUS, and SCRUB at .6554 instead of .6541.
"""

SOURCE = 'D. Choi and D. Na, arXiv:2409.14747'
TASKS = {'dlfd_age': 'Age', 'dlfd_emotion': 'Emotion', 'dlfd_multiattr': 'Multi-attributes',
         'dlfd_gender': 'Gender'}
MODELS = {'resnet18': 'ResNet18', 'densenet121': 'DenseNet121',
          'efficientnet_b0': 'EfficientNetB0'}
# Our name of a row -> theirs, in their order.
ROWS = {'original': 'Original', 'retrain': 'Retrained', 'finetune': 'Fine-tuning',
        'neg_grad': 'NegGrad', 'cf_k': 'CF-k', 'eu_k': 'EU-k', 'unsir': 'UNSIR',
        'bad_teacher': 'Bad Teaching', 'scrub': 'SCRUB', 'dlfd': 'DLFD'}

# Task -> metric -> values in the order of ROWS; ResNet18.
TABLE_1 = {
    'dlfd_age': {
        'accuracy': (.6329, .6050, .6349, .6283, .6323, .4767, .5950, .3663, .6311, .6166),
        'top2': (.8803, .8430, .8876, .8736, .8736, .6901, .8503, .6828, .8743, .8806),
        'forgetting': (.1923, .0767, .1980, .1880, .1853, .0438, .0887, .0455, .1614, .0385),
        'nomus': (.6241, .7258, .61945, .62615, .6308, .69455, .7088, .6376, .6541, .7698)},
    'dlfd_emotion': {
        'accuracy': (.7535, .6897, .7509, .7506, .7513, .7511, .5788, .5176, .7509, .6613),
        'forgetting': (.1852, .0195, .1735, .1862, .1845, .1585, .0192, .0250, .1391, .0372),
        'nomus': (.6915, .8253, .7019, .6891, .6911, .7171, .7702, .7338, .73635, .7934)},
    'dlfd_multiattr': {
        'accuracy': (.9212, .8700, .9218, .4487, .9192, .9189, .9233, .8129, .7057, .9129),
        'forgetting': (.0501, .0044, .0443, .0009, .04663, .0399, .0511, .0164, .0184, .0281),
        'nomus': (.9105, .9306, .9166, .7234, .9129, .9195, .9105, .8900, .8344, .9283)},
    'dlfd_gender': {
        'accuracy': (.9016, .8493, .9215, .1733, .9196, .9216, .9142, .9046, .9214, .8997),
        'forgetting': (.0461, .0149, .0488, .0895, .0581, .0576, .0663, .0453, .0615, .0306),
        'nomus': (.9047, .9097, .9119, .4971, .9017, .9031, .8908, .9070, .8992, .9192)},
}

# Model -> task -> NoMUS in the order of ROWS.
TABLE_2 = {
    'resnet18': {
        'dlfd_age': (.6242, .7258, .6195, .6946, .6262, .6309, .7088, .6377, .6554, .7698),
        'dlfd_emotion': (.6915, .8253, .7019, .6891, .6911, .7171, .7702, .7338, .7363, .7935),
        'dlfd_multiattr': (.9105, .9306, .9166, .7234, .9129, .9195, .9105, .8900, .8344, .9283),
        'dlfd_gender': (.9047, .9097, .9119, .4971, .9017, .9031, .8908, .9070, .8992, .9192)},
    'densenet121': {
        'dlfd_age': (.6813, .7617, .6671, .7375, .6677, .6900, .6321, .6211, .6989, .7733),
        'dlfd_emotion': (.7259, .8504, .7260, .7289, .7286, .7433, .7524, .6736, .6727, .7884),
        'dlfd_multiattr': (.9099, .9063, .9174, .9220, .9200, .9183, .9206, .9170, .8916, .9433),
        'dlfd_gender': (.9088, .8901, .9147, .5353, .9103, .9101, .9017, .9009, .9036, .9202)},
    'efficientnet_b0': {
        'dlfd_age': (.6419, .7580, .6412, .6943, .6478, .6507, .7315, .7202, .6574, .7617),
        'dlfd_emotion': (.6960, .8375, .7026, .6938, .6931, .6258, .8009, .6711, .67245, .7801),
        'dlfd_multiattr': (.9389, .9347, .9324, .9344, .9294, .9328, .9304, .9352, .8960, .9529),
        'dlfd_gender': (.8916, .8964, .8974, .8901, .8993, .8908, .8876, .8757, .8890, .9208)},
}
