"""Words and colours of report.html."""

from unlearn_jax.audit import verdict as verdict_lib

# Verdict -> colour class, heading, sentence.
BANNER = {
    verdict_lib.PASS: ('pass', 'PASS', 'On the declared checks, the model behaves like one that '
                       'never saw the deleted records.'),
    verdict_lib.FAIL: ('fail', 'FAIL', 'The model still differs from one that never saw the '
                       'deleted records, by more than chance explains.'),
    verdict_lib.INCONCLUSIVE: ('open', 'INCONCLUSIVE', 'This audit cannot tell whether the model '
                               'behaves like one that never saw the deleted records.'),
}
# Question -> what PASS and FAIL mean.
ANSWERS = {
    'forgotten': ('Yes: it does as well on them as models that never saw them.',
                  'No: it treats them differently from models that never saw them.'),
    'attack': ('No more than with models that never saw them.',
               'Yes: deleted records can be told from records that were never used.'),
    'useful': ('Yes: as good as models trained without the records.',
               'No: it differs from models trained without the records.'),
    'alike': ('Yes: it differs from them no more than they differ from one another.',
              'No: it differs from them more than they differ from one another.'),
}
# Plain names of the checks that decide.
LABELS = {
    'accuracy/forget': 'Right answers on deleted records',
    'loss_gap': 'Sureness: deleted against unseen records',
    'membership[auc]': 'Attack: deleted against unseen records',
    'accuracy/test': 'Right answers on new records',
    'accuracy/retain': 'Right answers on the records that stayed',
    'logit_distance/forget': 'Likeness of answers on deleted records',
}
CSS = '''
.banner { border-radius: 10px; padding: 1.2rem 1.5rem; margin: 1rem 0 1.4rem; color: #fff; }
.banner b { display: block; font-size: 2.4rem; line-height: 1.15; letter-spacing: .02em; }
.banner span { font-size: 1.1rem; }
.pass { background: #1b7f4b; } .fail { background: #b3261e; } .open { background: #8a6100; }
.tag { color: #fff; border-radius: 4px; padding: .1rem .45rem; white-space: nowrap;
  font-size: .85em; }
'''
