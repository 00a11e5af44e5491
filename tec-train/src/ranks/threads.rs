//! Ranks that are threads of one process, for tests.

use std::{
    sync::{Arc, Condvar, Mutex},
    thread,
};

use candle_core::Tensor;

use super::{Collective, buckets};
use crate::{Error, Result};

/// What all threads of a job share: one round of messages after the other.
#[derive(Default)]
struct Meeting {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    round: u64,
    said: Vec<Option<Vec<u8>>>,
    /// Of the round before; nobody can finish the next one before all have seen it.
    all: Arc<Vec<Vec<u8>>>,
    gone: bool,
}

/// One thread's view.
pub(crate) struct Thread {
    rank: usize,
    size: usize,
    meeting: Arc<Meeting>,
}

/// Runs `rank` on `size` threads and returns what each gave, by rank. A thread that panics ends the others with errors.
pub(crate) fn on_ranks<T: Send>(size: usize, rank: impl Fn(&dyn Collective) -> T + Sync) -> Vec<T> {
    let meeting = Arc::new(Meeting::default());
    meeting.state.lock().unwrap().said = vec![None; size];
    thread::scope(|scope| {
        let ranks: Vec<_> = (0..size)
            .map(|number| {
                let (meeting, rank) = (meeting.clone(), &rank);
                scope.spawn(move || {
                    let collective = Thread {
                        rank: number,
                        size,
                        meeting,
                    };
                    rank(&collective)
                })
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

impl Collective for Thread {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn sum(&self, tensors: Vec<Tensor>) -> Result<Vec<Tensor>> {
        buckets::sum(tensors, |values| {
            let all = self.gather(bytemuck::cast_slice(values))?;
            let all: Vec<Vec<f32>> = all.iter().map(|bytes| bytemuck::pod_collect_to_vec(bytes)).collect();
            for (at, value) in values.iter_mut().enumerate() {
                *value = all[1..].iter().fold(all[0][at], |sum, other| sum + other[at]);
            }
            Ok(())
        })
    }

    fn gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        let mut state = self.meeting.state.lock().unwrap();
        let round = state.round;
        let before = state.said[self.rank].replace(bytes.to_vec());
        assert!(before.is_none(), "rank {} spoke twice", self.rank);
        if state.said.iter().all(Option::is_some) {
            state.all = Arc::new(state.said.iter_mut().map(|said| said.take().unwrap()).collect());
            state.round += 1;
            self.meeting.changed.notify_all();
        }
        while state.round == round {
            if state.gone {
                return Err(Error::Data("another rank is gone".into()));
            }
            state = self.meeting.changed.wait(state).unwrap();
        }
        Ok(state.all.to_vec())
    }

    fn abandon(&self) {
        self.meeting.state.lock().unwrap().gone = true;
        self.meeting.changed.notify_all();
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        if thread::panicking() {
            self.abandon();
        }
    }
}
