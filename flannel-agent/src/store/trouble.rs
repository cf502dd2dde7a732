//! A failure of a watch that lasts: told once, waited for longer each time, and told to be over.

use std::time::Duration;

use tokio::{sync::mpsc::Sender, time::sleep};

use super::Event;

/// The first wait after a failure; each further one is twice as long, up to the last.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LAST_WAIT: Duration = Duration::from_secs(5);

#[derive(Default)]
pub(super) struct Trouble {
    waits: u32,
    told: Option<String>,
}

impl Trouble {
    pub(super) async fn wait(&mut self, sender: &Sender<Event>, reason: &str) {
        if self.told.as_deref() != Some(reason) {
            self.told = Some(reason.into());
            let _ = sender.send(Event::Trouble(reason.into())).await;
        }
        let wait = FIRST_WAIT.saturating_mul(1 << self.waits.min(8)).min(LAST_WAIT);
        self.waits += 1;
        tokio::select! {
            () = sleep(wait) => {}
            () = sender.closed() => {}
        }
    }

    pub(super) async fn over(&mut self, sender: &Sender<Event>) {
        self.waits = 0;
        if self.told.take().is_some() {
            let _ = sender.send(Event::Recovered).await;
        }
    }
}
