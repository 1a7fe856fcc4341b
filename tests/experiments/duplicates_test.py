"""Near-duplicates of forgotten pictures in other splits, found without a model."""

from absl.testing import absltest

from experiments import duplicates
from experiments.configs import dlfd_age


class DuplicatesTest(absltest.TestCase):

  def test_finds_the_planted_pair(self):
    config = dlfd_age.get_config('smoke')
    config.data.image_size = 128
    task = duplicates.load(config)
    found = duplicates.find(task)
    self.assertEqual(set(found), {'retain', 'validation', 'test', 'unseen'})
    self.assertLen(found['retain'], 1)
    pair = found['retain'][0]
    self.assertEqual((pair['forget'], pair['other']), (0, 32))  # F0001's and F0005's first
    self.assertLessEqual(pair['bits'], 6)
    self.assertEmpty(found['validation'] + found['test'] + found['unseen'])
    text = duplicates.text(task)
    self.assertIn('retain: 1 pairs, 1 of 30 forgotten records', text)
    self.assertIn('forget 0 (F0001_D), retain 32 (F0005_D)', text)


if __name__ == '__main__':
  absltest.main()
