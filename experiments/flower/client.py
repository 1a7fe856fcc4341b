"""The ClientApp: answers the server's questions with arrays; its pairs stay where they are."""

from flwr.app import Context
from flwr.app import Message
from flwr.clientapp import ClientApp

from experiments.flower import messages
from experiments.flower import rounds

app = ClientApp()


@app.query('client')
def number(message: Message, context: Context) -> Message:
  """Which client this is: `client` of the node's config."""
  content = messages.packed({}, client=int(context.node_config['client']))
  return Message(content, reply_to=message)


@app.train('round')
def answer(message: Message, context: Context) -> Message:
  """A round's work."""
  settings = messages.settings(context.run_config)
  found = rounds.answer(rounds.federation(settings), settings, messages.question(message.content),
                        int(context.node_config['client']))
  return Message(messages.packed(found), reply_to=message)
