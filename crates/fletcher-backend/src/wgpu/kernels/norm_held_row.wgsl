        // A row that the lanes' registers hold.
{{LOAD}}
        let mean = mean_of(sum);
{{CENTER}}
        let factor = 1.0 / sqrt(mean_of(squares) + p.eps);
{{STORE}}
