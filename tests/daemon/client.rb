# A terminal written in Ruby against docs/protocol.md and docs/terminals.md alone, with Ruby's own MessagePack and OpenSSL.
#
# Usage: ruby client.rb HOST PORT CODE KEY_HEX CARD_ID_HEX HISTORICAL_HEX
# Prints one line per answer, as JSON.

require "json"
require "msgpack"
require "openssl"
require "socket"

host, port, code, key_hex, card_id_hex, historical_hex = ARGV
key = [key_hex].pack("H*")

$line = TCPSocket.new(host, port.to_i)
$answers = MessagePack::Unpacker.new($line)
$msgid = 0

def send_ask(method, *params)
  $msgid += 1
  $line.write([0, $msgid, method, params].to_msgpack)
  $msgid
end

def ask(method, *params)
  msgid = send_ask(method, *params)
  type, answered, error, result = $answers.read
  raise "not an answer to #{msgid}" unless type == 1 && answered == msgid
  shown = error ? { error: error } : { result: show(result) }
  puts({ method: method }.merge(shown).to_json)
  result
end

def show(value)
  case value
  when Array then value.map { |item| show(item) }
  when String then value.encoding == Encoding::BINARY ? value.unpack1("H*") : value
  else value
  end
end

def binary(hex) = [hex].pack("H*")

def sm4(key, block)
  cipher = OpenSSL::Cipher.new("sm4-ecb").encrypt
  cipher.padding = 0
  cipher.key = key
  cipher.update(block) + cipher.final
end

# The proof of a side, as docs/terminals.md has it.
def proof(key, side, challenge, own)
  side_key = sm4(key, side.b + side.bytes.map { |byte| byte ^ 0xFF }.pack("C*"))
  left, right = sm4(sm4(side_key, challenge), own).unpack("a8a8")
  left.bytes.zip(right.bytes).map { |a, b| a ^ b }.pack("C*")
end

card = [binary(card_id_hex), binary(historical_hex)]
factor, challenge = binary("0102030405060708"), binary("1112131415161718")

# Before the terminal has proved itself, nothing.
ask("card.internal_cryptogram", card, factor, challenge)

ours = OpenSSL::Random.random_bytes(16)
theirs, _seconds = ask("terminal.challenge", code, ours)
keyd_proof, = ask("terminal.authenticate", proof(key, "TERMINAL", theirs, ours))
abort "keyd did not prove itself" unless keyd_proof == proof(key, "KEYD----", ours, theirs)

reply, _warnings = ask("card.internal_cryptogram", card, factor, challenge)
ask("card.internal_authenticate", card, factor, challenge, reply[0, 8])
ask("card.internal_authenticate", card, factor, challenge, "\0".b * 8)
ask("card.internal_cryptogram_batch", [[card, factor, challenge], [card, factor, "short".b], []])
ask("card.pin_reload", card, factor, "123456")
ask("no.such_method")

# Pipelined: three at once, answered in whatever order, told apart by msgid.
sent = 3.times.map { send_ask("daemon.random", 4) }
answered = 3.times.map { $answers.read[1] }
abort "answers went astray" unless answered.sort == sent
puts({ method: "pipelined", result: answered.size }.to_json)
