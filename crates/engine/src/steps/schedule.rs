//! Which step of a task may start: decided here, without a clock or a runtime.

use std::collections::BTreeSet;

use task::Graph;

/// Where a step is (task-yaml.md section 4.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StepState {
    /// It has not started, and if the run ends so it never will.
    Skipped,
    InProgress,
    Successful,
    Failed,
}

/// The steps of a task on their way through its graph.
pub(crate) struct Schedule<'a> {
    graph: &'a Graph,
    states: Vec<StepState>,
    /// Steps that have been handed out and have not ended, but for those that the caller does not
    /// count.
    running: BTreeSet<usize>,
    /// At most so many at once.
    running_max: usize,
}

impl<'a> Schedule<'a> {
    pub(crate) fn new(graph: &'a Graph, running_max: usize) -> Self {
        let states = vec![StepState::Skipped; graph.len()];
        Self { graph, states, running: BTreeSet::new(), running_max: running_max.max(1) }
    }

    /// The steps that may start now, in the order of the file; they count as started. None after
    /// one has failed.
    pub(crate) fn take_ready(&mut self) -> Vec<usize> {
        let mut ready = Vec::new();
        if self.has_failed() {
            return ready;
        }
        for step in 0..self.states.len() {
            if self.running.len() >= self.running_max {
                break;
            }
            let is_released = (self.graph.predecessors(step))
                .all(|before| self.states[before] == StepState::Successful);
            if self.states[step] == StepState::Skipped && is_released {
                self.states[step] = StepState::InProgress;
                self.running.insert(step);
                ready.push(step);
            }
        }
        ready
    }

    /// A step has ended, or runs on where nobody waits for it.
    pub(crate) fn record(&mut self, step: usize, is_successful: bool) {
        self.running.remove(&step);
        let state = if is_successful { StepState::Successful } else { StepState::Failed };
        self.states[step] = state;
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.states.contains(&StepState::Failed)
    }

    pub(crate) fn state(&self, step: usize) -> StepState {
        self.states[step]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(steps: &str) -> Graph {
        let variables = task::Variables::default();
        let file = task::TaskFile::read(steps, &variables).unwrap();
        let name = || "image".to_owned();
        let images =
            task::AliasImages { acr: name(), az: name(), bash: name(), curl: name(), cssc: name() };
        let file = file.expand(&Default::default(), &images, &variables).unwrap();
        let file = file.render(&variables, &Default::default()).unwrap();
        file.task(&Default::default()).unwrap().0.graph
    }

    /// Steps a, b, c, d: `d` waits for `b` and `c`, which wait for `a`.
    fn diamond() -> Graph {
        graph(
            "steps:\n- {id: a, cmd: x}\n- {id: b, cmd: x, when: [a]}\n\
             - {id: c, cmd: x, when: [a]}\n- {id: d, cmd: x, when: [b, c]}\n",
        )
    }

    #[test]
    fn b4_a_step_starts_when_all_it_waits_for_are_successful() {
        let graph = diamond();
        let mut schedule = Schedule::new(&graph, 8);
        assert_eq!(schedule.take_ready(), [0]);
        assert!(schedule.take_ready().is_empty());
        schedule.record(0, true);
        assert_eq!(schedule.take_ready(), [1, 2]);
        schedule.record(2, true);
        assert!(schedule.take_ready().is_empty());
        schedule.record(1, true);
        assert_eq!(schedule.take_ready(), [3]);
        schedule.record(3, true);
        assert!(!schedule.has_failed());
    }

    #[test]
    fn b13_after_a_failure_nothing_starts_and_what_did_not_start_stays_skipped() {
        let graph = diamond();
        let mut schedule = Schedule::new(&graph, 8);
        schedule.take_ready();
        schedule.record(0, false);
        assert!(schedule.take_ready().is_empty());
        assert!(schedule.has_failed());
        let states: Vec<_> = (0..4).map(|step| schedule.state(step)).collect();
        use StepState::{Failed, Skipped};
        assert_eq!(states, [Failed, Skipped, Skipped, Skipped]);
    }

    #[test]
    fn a_bound_on_steps_at_once_delays_steps_and_loses_none() {
        let graph = graph("steps: [{cmd: x}, {cmd: x, when: ['-']}, {cmd: x, when: ['-']}]");
        let mut schedule = Schedule::new(&graph, 2);
        assert_eq!(schedule.take_ready(), [0, 1]);
        assert!(schedule.take_ready().is_empty());
        schedule.record(1, true);
        assert_eq!(schedule.take_ready(), [2]);
    }

    #[test]
    fn a1_a_task_without_steps_has_nothing_to_start() {
        let graph = graph("{}");
        let mut schedule = Schedule::new(&graph, 0);
        assert!(schedule.take_ready().is_empty());
        assert!(!schedule.has_failed());
    }
}
