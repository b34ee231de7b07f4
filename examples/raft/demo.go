package main

import (
	"errors"
	"fmt"
	"time"
)

// demo is the story that main tells.
type demo struct {
	*cluster
	clients *clients
	n       int
	say     func(format string, args ...any)
	picture string

	state view // what the log was when the last act ended
	calls int
}

func (d *demo) run() error {
	ids := []string{"n1", "n2", "n3"}
	for _, id := range ids {
		if err := d.start(id, ids...); err != nil {
			return err
		}
	}
	if _, err := d.awaitLeader(); err != nil {
		return err
	}
	stop := make(chan struct{})
	defer close(stop)
	go d.report(stop)
	for _, act := range []struct {
		title string
		play  func() error
	}{
		{"three servers, and clients that append through any of them", func() error { time.Sleep(2 * time.Second); return nil }},
		{"a follower is killed, and misses more than the others keep in their logs", d.awayForLong},
		{"the leader is killed", d.killLeader},
		{"the network is cut around the leader", d.cutLeader},
		{"all servers are killed at once", d.killAll},
		{"a fourth server is added, and the leader removed", d.replaceLeader},
	} {
		d.say("== %s", act.title)
		d.clients.run(d.n)
		err := act.play()
		history, haltErr := d.clients.halt()
		if err := errors.Join(err, haltErr); err != nil {
			return fmt.Errorf("%s: %w", act.title, err)
		}
		if err := checkLinearizable(d.state, history, d.picture); err != nil {
			return fmt.Errorf("%s: %w", act.title, err)
		}
		if d.state, err = d.clients.checkLogs(); err != nil {
			return fmt.Errorf("%s: %w", act.title, err)
		}
		d.calls += len(history)
		d.say("checked: %d calls are linearizable; the logs of %v are equal, %d records, nothing missing or doubled", len(history), d.running(), d.state.End)
	}
	d.say("all good: %d calls, of which %d attempts were repeated; %d appends acknowledged, each once in every log", d.calls, d.clients.failing.Load(), d.clients.total())
	return nil
}

// awayForLong kills a follower until the leader has deleted what it would need, so that it gets a snapshot.
func (d *demo) awayForLong() error {
	away := d.follower()
	s, err := d.status(away)
	if err != nil {
		return err
	}
	d.say("kill -9 %s, whose Raft log ends at %d", away, s.Last)
	d.kill(away)
	var lead status
	err = await("the leader's log to begin behind "+away+"'s end", 30*time.Second, func() bool {
		lead, _ = d.status(d.leader())
		return lead.First > s.Last+1
	})
	if err != nil {
		return err
	}
	d.say("a snapshot at %d let DeleteBefore drop the leader's Raft log up to %d; start %s again", lead.Snapshot, lead.First-1, away)
	if err := d.start(away); err != nil {
		return err
	}
	return d.awaitCaughtUp(away)
}

func (d *demo) awaitCaughtUp(id string) error {
	return await(id+" to catch up", 20*time.Second, func() bool {
		a, errA := d.status(id)
		b, errB := d.status(d.leader())
		return errA == nil && errB == nil && a.Leader != "" && a.End+200 > b.End
	})
}

func (d *demo) killLeader() error {
	leader, err := d.awaitLeader()
	if err != nil {
		return err
	}
	time.Sleep(500 * time.Millisecond)
	d.say("kill -9 %s", leader)
	begin := time.Now()
	d.kill(leader)
	next, err := d.awaitLeader(leader)
	if err != nil {
		return err
	}
	d.say("%s leads after %d ms; start %s again", next, time.Since(begin).Milliseconds(), leader)
	time.Sleep(500 * time.Millisecond)
	return d.start(leader)
}

func (d *demo) cutLeader() error {
	leader, err := d.awaitLeader()
	if err != nil {
		return err
	}
	time.Sleep(500 * time.Millisecond)
	d.say("nothing passes between %s and the others", leader)
	begin := time.Now()
	d.net.isolate(leader)
	next, err := d.awaitLeader(leader)
	if err != nil {
		return err
	}
	d.say("%s leads after %d ms; %s can't acknowledge anything", next, time.Since(begin).Milliseconds(), leader)
	time.Sleep(time.Second)
	d.net.heal()
	d.say("the network is whole again")
	return d.awaitCaughtUp(leader)
}

func (d *demo) killAll() error {
	time.Sleep(500 * time.Millisecond)
	ids := d.running()
	d.say("kill -9 %v", ids)
	for _, id := range ids {
		d.kill(id)
	}
	time.Sleep(300 * time.Millisecond)
	for _, id := range ids {
		if err := d.start(id); err != nil {
			return err
		}
	}
	if _, err := d.awaitLeader(); err != nil {
		return err
	}
	time.Sleep(500 * time.Millisecond)
	return nil
}

func (d *demo) replaceLeader() error {
	if err := d.start("n4"); err != nil {
		return err
	}
	if err := d.change("add", "n4"); err != nil {
		return err
	}
	d.say("n4 is a voter")
	if err := d.awaitCaughtUp("n4"); err != nil {
		return err
	}
	leader, err := d.awaitLeader()
	if err != nil {
		return err
	}
	if err := d.change("remove", leader); err != nil {
		return err
	}
	d.say("%s is removed", leader)
	d.kill(leader)
	if _, err := d.awaitLeader(leader); err != nil {
		return err
	}
	time.Sleep(500 * time.Millisecond)
	return nil
}

// report says every second who leads and how much is acknowledged.
func (d *demo) report(stop chan struct{}) {
	last := 0
	for {
		select {
		case <-stop:
			return
		case <-time.After(time.Second):
		}
		leader := d.leader()
		if leader == "" {
			leader = "nobody"
		}
		total := d.clients.total()
		d.say("    %s leads; %d appends acknowledged, %d/s", leader, total, total-last)
		last = total
	}
}
