//! What both sides say about ports (section 5.3.6.2). What is still to be said is a state, not a list: a guest that asks over
//! and over, or never listens, makes nothing grow.

const DEVICE_READY: u16 = 0;
const DEVICE_ADD: u16 = 1;
const PORT_READY: u16 = 3;
const CONSOLE_PORT: u16 = 4;
const RESIZE: u16 = 5;
const PORT_OPEN: u16 = 6;
const PORT_NAME: u16 = 7;

/// The bytes of a message without what follows: `id`, `event` and `value`.
pub(super) const HEADER_BYTES: usize = 8;

/// The size of a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) cols: u16,
    pub(super) rows: u16,
}

/// What the guest knows of one port, and what it is still to be told.
#[derive(Default)]
struct Port {
    is_there: bool,
    name: Vec<u8>,
    /// It is to be told that the port exists, is the console, has a name, has this size.
    add: bool,
    console: bool,
    tell_name: bool,
    tell_size: bool,
    /// The guest has taken the port up.
    ready: bool,
    /// The guest has opened the port.
    open: bool,
    /// What the guest was last told of the host's end.
    told_open: bool,
}

/// The conversation about all ports. Port 0 is the console, or is not there.
pub(super) struct Conversation {
    ports: Vec<Port>,
    /// Both sides agreed on sizes.
    sizes: bool,
}

/// A message to the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Message {
    id: u32,
    event: u16,
    value: u16,
    rest: Vec<u8>,
}

impl Message {
    /// As it stands in a buffer.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + self.rest.len());
        bytes.extend(self.id.to_le_bytes());
        bytes.extend(self.event.to_le_bytes());
        bytes.extend(self.value.to_le_bytes());
        bytes.extend(&self.rest);
        bytes
    }
}

impl Conversation {
    /// A conversation that has not begun, about ports of these names, the first of which is the console's. A guest has somebody
    /// log in on every console it is told of: one that leads nowhere is kept from it.
    pub(super) fn new(names: &[String], has_console: bool, sizes: bool) -> Conversation {
        let port = |(id, name): (usize, &String)| Port {
            is_there: id > 0 || has_console,
            name: name.clone().into_bytes(),
            ..Port::default()
        };
        Conversation { ports: names.iter().enumerate().map(port).collect(), sizes }
    }

    /// The guest said something. What makes no sense is ignored.
    pub(super) fn heard(&mut self, message: [u8; HEADER_BYTES]) {
        let [a, b, c, d, e, f, g, h] = message;
        let id = u32::from_le_bytes([a, b, c, d]);
        let event = u16::from_le_bytes([e, f]);
        let yes = u16::from_le_bytes([g, h]) == 1;
        if event == DEVICE_READY {
            if yes {
                self.ports.iter_mut().for_each(|port| port.add = port.is_there);
            } else {
                tracing::debug!("the guest has no use for the console");
            }
            return;
        }
        let port = usize::try_from(id).ok().and_then(|id| self.ports.get_mut(id));
        let Some(port) = port.filter(|port| port.is_there) else { return };
        match event {
            PORT_READY => {
                port.ready = yes;
                port.told_open = false;
                port.console = yes && id == 0;
                port.tell_size = yes && id == 0;
                port.tell_name = yes && !port.name.is_empty();
                if !yes {
                    port.open = false;
                    tracing::debug!(id, "the guest has no use for a port of the console");
                }
            }
            PORT_OPEN => port.open = yes,
            _ => tracing::debug!(id, event, "the guest says something of a port that makes no sense"),
        }
    }

    /// The terminal has another size.
    pub(super) fn resized(&mut self) {
        if let Some(port) = self.ports.first_mut() {
            port.tell_size = port.ready;
        }
    }

    /// Whether the guest has opened a port.
    pub(super) fn is_open(&self, id: usize) -> bool {
        self.ports.get(id).is_some_and(|port| port.open)
    }

    /// Whether the guest believes that somebody is at the host's end of a port.
    pub(super) fn told_open(&self, id: usize) -> bool {
        self.ports.get(id).is_some_and(|port| port.told_open)
    }

    /// What is to be said next, of ports that are connected or not. A port is added before anything else is said of it.
    pub(super) fn next(&self, connected: &[bool], size: Size) -> Option<Message> {
        let about = |id, event, value, rest| Message { id, event, value, rest };
        for (id, (index, port)) in (0_u32..).zip(self.ports.iter().enumerate()) {
            let connected = connected.get(index).copied().unwrap_or_default();
            if port.add {
                return Some(about(id, DEVICE_ADD, 0, Vec::new()));
            }
            if port.console {
                return Some(about(id, CONSOLE_PORT, 1, Vec::new()));
            }
            if port.tell_name {
                return Some(about(id, PORT_NAME, 1, port.name.clone()));
            }
            if port.tell_size && self.sizes && size != (Size { cols: 0, rows: 0 }) {
                // The order is the specification's. Linux long read it the other way round.
                let rest = [size.cols.to_le_bytes(), size.rows.to_le_bytes()].concat();
                return Some(about(id, RESIZE, 0, rest));
            }
            if port.ready && port.told_open != connected {
                return Some(about(id, PORT_OPEN, u16::from(connected), Vec::new()));
            }
        }
        None
    }

    /// The message reached the guest.
    pub(super) fn said(&mut self, message: &Message) {
        let Some(port) = usize::try_from(message.id).ok().and_then(|id| self.ports.get_mut(id)) else {
            return;
        };
        match message.event {
            DEVICE_ADD => port.add = false,
            CONSOLE_PORT => port.console = false,
            PORT_NAME => port.tell_name = false,
            RESIZE => port.tell_size = false,
            PORT_OPEN => port.told_open = message.value == 1,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIZE: Size = Size { cols: 80, rows: 25 };

    fn hear(conversation: &mut Conversation, id: u32, event: u16, value: u16) {
        let message = Message { id, event, value, rest: Vec::new() };
        conversation.heard(message.bytes().try_into().unwrap());
    }

    fn all(conversation: &mut Conversation, connected: &[bool]) -> Vec<(u32, u16, u16)> {
        let mut said = Vec::new();
        while let Some(message) = conversation.next(connected, SIZE) {
            conversation.said(&message);
            said.push((message.id, message.event, message.value));
            assert!(said.len() < 100, "it never ends");
        }
        said
    }

    fn two_ports() -> Conversation {
        Conversation::new(&[String::new(), "agent".to_owned()], true, true)
    }

    #[test]
    fn nothing_is_said_before_the_guest_is_ready() {
        assert_eq!(all(&mut two_ports(), &[true, true]), []);
    }

    #[test]
    fn a_port_is_told_of_when_the_guest_takes_it_up() {
        let mut conversation = two_ports();
        hear(&mut conversation, u32::MAX, DEVICE_READY, 1);
        assert_eq!(all(&mut conversation, &[true, false]), [(0, DEVICE_ADD, 0), (1, DEVICE_ADD, 0)]);
        hear(&mut conversation, 0, PORT_READY, 1);
        let console = [(0, CONSOLE_PORT, 1), (0, RESIZE, 0), (0, PORT_OPEN, 1)];
        assert_eq!(all(&mut conversation, &[true, false]), console);
        hear(&mut conversation, 1, PORT_READY, 1);
        assert_eq!(all(&mut conversation, &[true, false]), [(1, PORT_NAME, 1)]);
        assert_eq!(all(&mut conversation, &[true, true]), [(1, PORT_OPEN, 1)]);
        assert_eq!(all(&mut conversation, &[true, false]), [(1, PORT_OPEN, 0)]);
    }

    #[test]
    fn a_console_that_is_not_there_is_not_told_of() {
        let mut conversation = Conversation::new(&[String::new(), "agent".to_owned()], false, true);
        hear(&mut conversation, u32::MAX, DEVICE_READY, 1);
        assert_eq!(all(&mut conversation, &[false, true]), [(1, DEVICE_ADD, 0)]);
        hear(&mut conversation, 1, PORT_READY, 1);
        assert_eq!(all(&mut conversation, &[false, true]), [(1, PORT_NAME, 1), (1, PORT_OPEN, 1)]);
        hear(&mut conversation, 0, PORT_READY, 1);
        hear(&mut conversation, 0, PORT_OPEN, 1);
        conversation.resized();
        assert_eq!(all(&mut conversation, &[false, true]), []);
        assert!(!conversation.is_open(0));
    }

    #[test]
    fn the_name_and_the_size_follow_the_header() {
        let mut conversation = two_ports();
        hear(&mut conversation, 1, PORT_READY, 1);
        let name = conversation.next(&[], SIZE).unwrap();
        assert_eq!(name.bytes(), b"\x01\0\0\0\x07\0\x01\0agent");
        hear(&mut conversation, 0, PORT_READY, 1);
        let console = conversation.next(&[], SIZE).unwrap();
        conversation.said(&console);
        let size = conversation.next(&[], SIZE).unwrap();
        assert_eq!(size.bytes(), b"\0\0\0\0\x05\0\0\0\x50\0\x19\0");
    }

    proptest! {
        #[test]
        fn whatever_the_guest_says_the_answers_end(
            heard in prop::collection::vec((0_u32..4, 0_u16..9, 0_u16..3), 0..200),
            connected in prop::array::uniform2(any::<bool>()),
        ) {
            let mut conversation = two_ports();
            for (id, event, value) in heard {
                hear(&mut conversation, id, event, value);
            }
            prop_assert!(all(&mut conversation, &connected).len() <= 8);
        }
    }
}
